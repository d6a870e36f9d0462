package statedir

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/failpoint"
)

// A Holder is the process that serves a state directory.
type Holder struct {
	PID    int    `json:"pid"`
	Mode   string `json:"mode"`             // modeServe, modeEmbedded or modeCommand
	Listen string `json:"listen,omitempty"` // the TCP address, if any
}

const (
	ModeServe    = "serve"
	ModeEmbedded = "embedded"
	ModeCommand  = "command"
)

// HeldError says that another process has the state directory, and which.
type HeldError struct {
	state  string
	holder Holder
}

func (e *HeldError) Error() string {
	what := "an enclave process"
	switch e.holder.Mode {
	case ModeServe:
		what = "`enclave serve`"
	case ModeEmbedded:
		what = "the background control plane of `enclave run`, which ends by itself with its last client"
	}
	return fmt.Sprintf("state directory %s is in use by process %d, %s: use it, stop it with `kill %d`, or choose another directory with --state",
		e.state, e.holder.PID, what, e.holder.PID)
}

// A Locked is a state directory that this process alone may write to.
// The lock ends with the process, however it ends.
type Locked struct {
	*Dir
	f *os.File
}

// Lock takes s for this process. If another has it, lock waits until ctx ends
// and then returns a heldError; an ended ctx means one try.
func (s *Dir) Lock(ctx context.Context, mode string) (*Locked, error) {
	f, err := os.OpenFile(s.File("lock"), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, Unwritable(s.Path, err)
	}
	if err := WaitLock(ctx, f); err != nil {
		f.Close()
		if errors.Is(err, errLocked) {
			return nil, &HeldError{s.Path, s.ReadHolder()}
		}
		return nil, fmt.Errorf("lock %s: %w", s.File("lock"), err)
	}
	if err := failpoint.Hit("state.lock.taken"); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", s.File("lock"), err)
	}
	l := &Locked{s, f}
	if err := l.Describe(Holder{PID: os.Getpid(), Mode: mode}); err != nil {
		f.Close()
		return nil, Unwritable(s.Path, err)
	}
	return l, nil
}

// Describe tells others who holds the lock.
func (l *Locked) Describe(h Holder) error {
	raw, err := json.Marshal(h)
	if err != nil {
		return err
	}
	if err := l.f.Truncate(0); err != nil {
		return err
	}
	_, err = l.f.WriteAt(append(raw, '\n'), 0)
	return err
}

func (l *Locked) Unlock() { l.f.Close() }

// Held reports who has s, without disturbing anyone who is about to take it.
func (s *Dir) Held() (Holder, bool, error) {
	f, err := os.OpenFile(s.File("lock"), os.O_RDWR|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return Holder{}, false, nil
	}
	if err != nil {
		return Holder{}, false, Unwritable(s.Path, err)
	}
	defer f.Close()
	l := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &l); err != nil {
		return Holder{}, false, fmt.Errorf("read the lock of %s: %w", s.Path, err)
	}
	if l.Type == unix.F_UNLCK {
		return Holder{}, false, nil
	}
	return s.ReadHolder(), true, nil
}

func (s *Dir) ReadHolder() Holder {
	var h Holder
	raw, err := ReadFile(s.File("lock"))
	if err == nil {
		_ = json.Unmarshal(raw, &h) // a holder that has not yet written says nothing of itself
	}
	return h
}

var errLocked = errors.New("locked by another process")

// WaitLock takes the exclusive lock of f, asking again until ctx ends. The
// lock belongs to the open file (fcntl(2), "Open file description locks"), so
// that it can be looked at without being taken.
func WaitLock(ctx context.Context, f *os.File) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EINTR) {
			return err
		}
		select {
		case <-ctx.Done():
			return errLocked
		case <-tick.C:
		}
	}
}
