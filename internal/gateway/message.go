package gateway

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/egress"
)

// What crosses between the control plane and the gateway process: on one
// sequenced-packet socket the setup, and then for each session a byte with three
// descriptors, its packets, a stream of its own and its meter. On that stream messages follow
// one another, each a length of four bytes and JSON. As each session has its own
// stream, a message names no session, and none can speak for another.
const (
	maxOrder  = 1 << 20  // bytes of a message to the gateway process: a grant may have many rules
	maxReport = 16 << 10 // bytes of a message from it
	maxSetup  = 64 << 10
)

// setup is the first thing the process is told.
type setup struct {
	Memory   int64          `json:"memory"`
	Files    uint64         `json:"files"`
	Sessions int            `json:"sessions"`
	Bounds   Bounds         `json:"bounds"`
	Private  []netip.Prefix `json:"private,omitempty"`
	Denied   []netip.Prefix `json:"denied,omitempty"`
}

// An order goes to the gateway process. It is exactly one of these.
type order struct {
	Start    *start    `json:"start,omitempty"`
	Recorded *recorded `json:"recorded,omitempty"`
	Stop     bool      `json:"stop,omitempty"`
}

type start struct {
	Session string       `json:"session"`
	Grant   egress.Grant `json:"grant"`
}

// recorded answers an attempt.
type recorded struct {
	Error string `json:"error,omitempty"`
}

// A report comes from the gateway process. It is exactly one of these.
type report struct {
	Attempt *attempt `json:"attempt,omitempty"`
	Done    *done    `json:"done,omitempty"`
}

// attempt asks for an event to be recorded.
type attempt struct {
	Type     audit.Type    `json:"type"`
	Host     string        `json:"host"`
	Port     uint16        `json:"port,omitempty"`
	Protocol string        `json:"protocol"`
	Reason   egress.Reason `json:"reason"`
	Rule     string        `json:"rule,omitempty"`
	Count    uint64        `json:"count"`
}

type done struct {
	Traffic egress.Traffic `json:"traffic"`
	Error   string         `json:"error,omitempty"`
}

// check returns an error unless a gateway that serves g could have reported a.
func (a attempt) check(g egress.Grant) error {
	switch {
	case a.Host == "" || len(a.Host) > 253:
		return errors.New("a host of no or too many characters")
	case !slices.Contains([]string{"tcp", "udp", "icmp", "dns", "other"}, a.Protocol):
		return errors.New("an unknown protocol")
	case a.Count == 0:
		return errors.New("an attempt that was not made")
	}
	for _, c := range []byte(a.Host) {
		if c < ' ' || c > '~' {
			return errors.New("a host that is not printable")
		}
	}
	switch a.Type {
	case audit.EgressAllowed:
		if a.Reason != egress.Allowed || a.Protocol != "tcp" || a.Port == 0 || !slices.Contains(g.Allow, a.Rule) {
			return errors.New("an allowed connection that no rule allows")
		}
	case audit.EgressDenied:
		if !slices.Contains(denials, a.Reason) || a.Rule != "" {
			return errors.New("a denial for an unknown reason")
		}
	default:
		return errors.New("an event that is not the gateway's")
	}
	return nil
}

// denials are the reasons that an attempt may be refused for.
var denials = []egress.Reason{
	egress.NotAllowed, egress.ReservedAddress, egress.BadHost, egress.NoAddress, egress.NameMismatch,
	egress.EncryptedName, egress.BadProtocol, egress.MethodOrPath, egress.BindingNotGranted,
	egress.UpstreamTLS, egress.OverBudget, egress.Floor,
}

// A mailbox is one end of a session's stream.
type mailbox struct {
	conn net.Conn
	mu   sync.Mutex // one message at a time
}

func (m *mailbox) send(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	_, err = m.conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
	return err
}

// receive reads the next message into v. One of more than limit bytes is
// refused before it is read, and one with a field that v lacks after.
func (m *mailbox) receive(v any, limit uint32) error {
	var size [4]byte
	if _, err := io.ReadFull(m.conn, size[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > limit {
		return fmt.Errorf("a message of %d bytes", n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(m.conn, b); err != nil {
		return fmt.Errorf("read a message: %w", err)
	}
	return decode(b, v)
}

func decode(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("decode a message: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("decode a message: there is more behind it")
	}
	return nil
}

// pair returns a connected pair of unix sockets, one end as a connection and
// the other as a descriptor.
func pair(kind int) (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a socket pair: %w", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "gateway")
	mine, err := connOf(fds[0])
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return mine, theirs, nil
}

// connOf returns the unix socket fd as a connection, and owns it.
func connOf(fd int) (*net.UnixConn, error) {
	f := os.NewFile(uintptr(fd), "gateway")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("use a socket: %w", err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, errors.New("use a socket: not a unix socket")
	}
	return u, nil
}
