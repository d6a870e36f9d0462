// Package route asks the kernel where it would send what goes to an address. It
// changes nothing, and remembers nothing: each answer is as of the question.
package route

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"
)

// A Kernel answers for the network namespace in which it was opened, as often as it
// is asked, also in a process that may open sockets no more. It is safe for
// concurrent use.
type Kernel struct {
	mu  sync.Mutex // one question at a time
	fd  int
	seq uint32
}

// Open opens a socket to the kernel's routes, on which it may be asked without any
// privilege.
func Open() (*Kernel, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("ask for routes: %w", err)
	}
	// The kernel answers before the question's call returns. Nobody waits for it.
	err = errors.Join(
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1}),
	)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("ask for routes: %w", err)
	}
	return &Kernel{fd: fd}, nil
}

// Close ends k, which then takes every address for the host's own.
func (k *Kernel) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	fd := k.fd
	k.fd = -1
	return unix.Close(fd)
}

// Own reports whether a is this host's own now: what is sent there would not leave
// it, but be taken by the host itself or by many. That is so of an address of an
// interface, of what a local route covers, of broadcast, multicast and anycast. It
// is true as well where the kernel does not say.
func (k *Kernel) Own(a netip.Addr) bool {
	kind, err := k.kind(a.Unmap())
	switch {
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.EACCES), errors.Is(err, unix.EINVAL):
		return false // there is no way to it: a dial fails
	case err != nil:
		return true
	}
	switch kind {
	case unix.RTN_UNICAST, unix.RTN_UNREACHABLE, unix.RTN_BLACKHOLE, unix.RTN_PROHIBIT, unix.RTN_THROW:
		return false
	}
	return true
}

// kind returns the type of the route to a, rtnetlink(7).
func (k *Kernel) kind(a netip.Addr) (uint8, error) {
	if !a.IsValid() || a.Zone() != "" {
		return 0, errors.New("route to what is no address")
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.seq++
	if err := unix.Sendto(k.fd, question(a, k.seq), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, fmt.Errorf("ask for the route to %s: %w", a, err)
	}
	b := make([]byte, 8192)
	for {
		n, from, err := unix.Recvfrom(k.fd, b, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("read the route to %s: %w", a, err)
		}
		if nl, ok := from.(*unix.SockaddrNetlink); !ok || nl.Pid != 0 || n < unix.SizeofNlMsghdr || binary.NativeEndian.Uint32(b[8:]) != k.seq {
			continue // of nobody's, or the late answer to a question before
		}
		return answer(b[:n])
	}
}

// question is a message that asks for the route to a, as for a packet of this
// process.
func question(a netip.Addr, seq uint32) []byte {
	family, addr := byte(unix.AF_INET), a.AsSlice()
	if a.Is6() {
		family = unix.AF_INET6
	}
	size := unix.SizeofNlMsghdr + unix.SizeofRtMsg + unix.SizeofRtAttr + len(addr)
	b := binary.NativeEndian.AppendUint32(nil, uint32(size))
	b = binary.NativeEndian.AppendUint16(b, unix.RTM_GETROUTE)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = append(b, 0, 0, 0, 0) // from whom: the kernel knows
	b = append(b, family, byte(a.BitLen()), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofRtAttr+len(addr)))
	b = binary.NativeEndian.AppendUint16(b, unix.RTA_DST)
	return append(b, addr...)
}

// answer reads what the kernel said.
func answer(b []byte) (uint8, error) {
	const kindAt = unix.SizeofNlMsghdr + 7 // rtm_type
	switch kind := binary.NativeEndian.Uint16(b[4:]); {
	case kind == unix.NLMSG_ERROR && len(b) >= unix.SizeofNlMsghdr+4:
		if code := int32(binary.NativeEndian.Uint32(b[unix.SizeofNlMsghdr:])); code < 0 {
			return 0, unix.Errno(-code)
		}
	case kind == unix.RTM_NEWROUTE && len(b) > kindAt:
		return b[kindAt], nil
	}
	return 0, errors.New("an answer without a route")
}
