package gateway

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/egress"
)

// A meter counts a session's bytes in a file that outlives the gateway process:
// the process maps it and counts there, and whoever made the file reads it when
// the process is gone. The process can neither grow nor shrink it.
//
// The file has meterSize bytes: meterMagic, which names this layout, then the
// bytes in and the bytes out, eight each in this machine's order.
type meter struct {
	page    []byte // mapped; nil if the counters are this process's alone
	in, out *atomic.Int64
}

const (
	meterMagic = "enclmtr1"
	meterSize  = 24
)

// newMeter returns a meter that nobody else reads.
func newMeter() *meter { return &meter{in: new(atomic.Int64), out: new(atomic.Int64)} }

// mapMeter maps the meter in the file fd, which it does not close.
func mapMeter(fd int) (*meter, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("use a meter: %w", err)
	}
	if st.Size != meterSize {
		return nil, fmt.Errorf("use a meter: it has %d bytes", st.Size)
	}
	page, err := unix.Mmap(fd, 0, meterSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map a meter: %w", err)
	}
	if string(page[:len(meterMagic)]) != meterMagic {
		unix.Munmap(page)
		return nil, errors.New("use a meter: of an unknown layout")
	}
	// A page begins at a multiple of eight, and so does each counter.
	return &meter{page, (*atomic.Int64)(unsafe.Pointer(&page[8])), (*atomic.Int64)(unsafe.Pointer(&page[16]))}, nil
}

// close unmaps the meter, which then must not be used.
func (m *meter) close() {
	if m.page != nil {
		unix.Munmap(m.page)
	}
}

// A meterFile is the file of a meter, on the side of its maker.
type meterFile struct{ f *os.File }

// createMeter makes the meter of session in dir. If dir is empty it has no name.
func createMeter(dir, session string) (meterFile, error) {
	var f *os.File
	if dir == "" {
		fd, err := unix.MemfdCreate("meter", unix.MFD_CLOEXEC)
		if err != nil {
			return meterFile{}, fmt.Errorf("make a meter: %w", err)
		}
		f = os.NewFile(uintptr(fd), "")
	} else {
		if session == "" || strings.ContainsAny(session, "/\x00") || session[0] == '.' {
			return meterFile{}, fmt.Errorf("make a meter of session %q: not a name", session)
		}
		var err error
		f, err = os.OpenFile(filepath.Join(dir, session), os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return meterFile{}, fmt.Errorf("make a meter: %w", err)
		}
	}
	m := meterFile{f}
	// It is written, so that its place on the disk is taken: a page that had none
	// could kill the process that counts on it.
	if _, err := f.Write(append([]byte(meterMagic), make([]byte, meterSize-len(meterMagic))...)); err != nil {
		m.remove()
		return meterFile{}, fmt.Errorf("make a meter: %w", err)
	}
	return m, nil
}

// traffic is what the meter says, and is never below told. The process that
// counts is not believed: a number that cannot be is none.
func (m meterFile) traffic(budget int64, told egress.Traffic) egress.Traffic {
	var b [meterSize]byte
	if n, err := m.f.ReadAt(b[:], 0); err != nil || n != meterSize || string(b[:len(meterMagic)]) != meterMagic {
		return told
	}
	t := egress.Traffic{
		In:    max(told.In, int64(binary.NativeEndian.Uint64(b[8:]))),
		Out:   max(told.Out, int64(binary.NativeEndian.Uint64(b[16:]))),
		Spent: told.Spent,
	}
	if t.In < 0 || t.Out < 0 || t.In+t.Out < 0 {
		return told
	}
	t.Spent = t.Spent || t.In+t.Out > budget
	return t
}

// remove ends the file. What is mapped stays until it is unmapped.
func (m meterFile) remove() {
	if name := m.f.Name(); name != "" {
		os.Remove(name)
	}
	m.f.Close()
}

// ClearMeters removes the meters in dir that an earlier process left.
func ClearMeters(dir string) error {
	left, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("clear the meters: %w", err)
	}
	for _, e := range left {
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("clear the meters: %w", err)
		}
	}
	return nil
}
