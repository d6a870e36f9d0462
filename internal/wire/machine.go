package wire

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// A sandbox that is a machine of its own has no socket that a backend could mount.
// Its guest dials the host on vsock: HostCID and one of two ports.
const (
	HostCID  = 2    // of the host, for every guest (vsock(7), VMADDR_CID_HOST)
	CorePort = 1024 // what a socket is to other sandboxes: the guest's two connections to the core
	BootPort = 1025 // the boot channel, which the backend answers

	// CoreAddress is what a guest in a machine dials.
	CoreAddress = "vsock:2:1024"
)

// maxLine is what either side of the boot channel reads of one message. None has
// a tenth of it; a hostile guest may send a hundred a second, which the host parses
// on its own account.
const maxLine = 4 << 10

// The boot channel carries lines of JSON: the guest's Machine, the host's Setup,
// then Reports one way and Looks the other. It is the first thing that a guest in
// a machine opens, and one that the host has closed ends the machine. No workload
// can reach it: it has no vsock.

// Machine is the guest's first line.
type Machine struct {
	Version int `json:"version"` // Version of this package
}

// EntropySize is how many random bytes the host gives a machine.
const EntropySize = 32

// Setup is the host's first line: what the guest makes of its machine before any
// workload exists. What limits something here is a wall: where the guest kernel
// refuses. The evidence of a breach lies below it, in the Reports.
type Setup struct {
	Version int    `json:"version"`
	Entropy []byte `json:"entropy"` // EntropySize bytes from the host's kernel
	Now     int64  `json:"now"`     // the host's time, in nanoseconds since 1970
	ID      string `json:"id"`      // of the sandbox
	UID     uint32 `json:"uid"`     // of workloads; never 0
	GID     uint32 `json:"gid"`     // of workloads; never 0
	Pids    int64  `json:"pids"`    // tasks of workloads, above which a fork is refused
	Memory  int64  `json:"memory"`  // bytes of workloads, files in /work and /tmp included, above which the kernel kills
	Disk    int64  `json:"disk"`    // bytes of /work and /tmp together, above which they are full
	Run     int64  `json:"run"`     // bytes of RunDir
	Shm     int64  `json:"shm"`     // bytes of /dev/shm
}

// A Report is what the guest's kernel says of the workloads. The guest sends one
// at most every 20 ms if something has changed, else every 100 ms, and one for each
// Look.
type Report struct {
	Seq          uint64 `json:"seq"`          // of the Look that it answers, or 0
	Tasks        int64  `json:"tasks"`        // processes and threads now
	ForksRefused int64  `json:"forksRefused"` // at the wall, since the start
	Memory       int64  `json:"memory"`       // bytes, without the files in /work and /tmp and without what the kernel may drop
	OOMKills     int64  `json:"oomKills"`     // processes that the kernel killed for memory, since the start
	Disk         int64  `json:"disk"`         // bytes that /work and /tmp take together
	// Exit is the guest program's own exit status, in the last Report only. The
	// host closes the channel when it has read it, and the machine turns itself off.
	Exit *int `json:"exit,omitempty"`
}

// A Look asks for a Report of the same Seq, which is never 0, at once.
type Look struct {
	Seq uint64 `json:"seq"`
}

// SendLine sends one message of the boot channel, in one write.
func SendLine(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode a message: %w", err)
	}
	if len(b) >= maxLine {
		return fmt.Errorf("a message has %d bytes, more than %d", len(b), maxLine-1)
	}
	if _, err := w.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("send a message: %w", err)
	}
	return nil
}

// A LineReader reads messages of the boot channel. It holds one line at a time,
// of bounded size. It is for one goroutine.
type LineReader struct{ r *bufio.Reader }

// NewLineReader returns a reader of the messages on r. It reads ahead, so r belongs
// to it.
func NewLineReader(r io.Reader) *LineReader {
	return &LineReader{bufio.NewReaderSize(r, maxLine)}
}

// Next reads one message into v: Machine, Setup, Report or Look. It returns io.EOF
// if the stream ends between messages, and an error that is ErrProtocol for a line
// that is too long, is no JSON, or has an unknown or a repeated field.
func (l *LineReader) Next(v checker) error {
	line, err := l.r.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return fmt.Errorf("%w: a message of more than %d bytes", ErrProtocol, maxLine-1)
	case err == io.EOF && len(line) > 0:
		return io.ErrUnexpectedEOF
	case err != nil:
		return err
	}
	if err := decodeLine(line, v); err != nil {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	return nil
}

// A checker is a message that knows what it may say.
type checker interface{ check() error }

// decodeLine decodes a line into v, whose fields are all cleared before.
func decodeLine(line []byte, v checker) error {
	if err := uniqueFields(line); err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("decode a message: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("a message is followed by another on its line")
	}
	return v.check()
}

// uniqueFields refuses an object that has a field twice, in whatever case: package
// json would take the last.
func uniqueFields(line []byte) error {
	d := json.NewDecoder(bytes.NewReader(line))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return errors.New("a message is no object")
	}
	seen := map[string]bool{}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return fmt.Errorf("decode a message: %w", err)
		}
		name, _ := t.(string)
		if name = string(bytes.ToLower([]byte(name))); seen[name] {
			return fmt.Errorf("the field %q is there twice", name)
		}
		seen[name] = true
		var skip json.RawMessage
		if err := d.Decode(&skip); err != nil {
			return fmt.Errorf("decode a message: %w", err)
		}
	}
	return nil
}

func (m *Machine) check() error { return checkVersion(m.Version) }

func checkVersion(v int) error {
	if v != Version {
		return fmt.Errorf("version %d is not %d", v, Version)
	}
	return nil
}

func (s *Setup) check() error {
	if err := checkVersion(s.Version); err != nil {
		return err
	}
	if len(s.Entropy) != EntropySize {
		return fmt.Errorf("%d bytes of entropy, not %d", len(s.Entropy), EntropySize)
	}
	const nobody = 1<<32 - 1
	if s.UID == 0 || s.UID == nobody || s.GID == 0 || s.GID == nobody {
		return fmt.Errorf("%d:%d are not the ids of an unprivileged user and group", s.UID, s.GID)
	}
	if s.ID == "" {
		return errors.New("the sandbox has no id")
	}
	for name, n := range map[string]int64{
		"now": s.Now, "pids": s.Pids, "memory": s.Memory, "disk": s.Disk, "run": s.Run, "shm": s.Shm,
	} {
		if n <= 0 {
			return fmt.Errorf("%s is %d", name, n)
		}
	}
	return nil
}

// check refuses what no kernel counts, so that nothing hostile is computed with.
func (r *Report) check() error {
	const most = 1 << 50
	for name, n := range map[string]int64{
		"tasks": r.Tasks, "forksRefused": r.ForksRefused, "memory": r.Memory, "oomKills": r.OOMKills, "disk": r.Disk,
	} {
		if n < 0 || n > most {
			return fmt.Errorf("%s is %d", name, n)
		}
	}
	if r.Exit != nil && (*r.Exit < 0 || *r.Exit > 255) {
		return fmt.Errorf("%d is not an exit status", *r.Exit)
	}
	return nil
}

func (l *Look) check() error {
	if l.Seq == 0 {
		return errors.New("a look without a number")
	}
	return nil
}
