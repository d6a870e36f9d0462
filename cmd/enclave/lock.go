package main

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

// A holder is the process that serves a state directory.
type holder struct {
	PID    int    `json:"pid"`
	Mode   string `json:"mode"`             // modeServe, modeEmbedded or modeCommand
	Listen string `json:"listen,omitempty"` // the TCP address, if any
}

const (
	modeServe    = "serve"
	modeEmbedded = "embedded"
	modeCommand  = "command"
)

// heldError says that another process has the state directory, and which.
type heldError struct {
	state  string
	holder holder
}

func (e *heldError) Error() string {
	what := "an enclave process"
	switch e.holder.Mode {
	case modeServe:
		what = "`enclave serve`"
	case modeEmbedded:
		what = "the background control plane of `enclave run`, which ends by itself with its last client"
	}
	return fmt.Sprintf("state directory %s is in use by process %d, %s: use it, stop it with `kill %d`, or choose another directory with --state",
		e.state, e.holder.PID, what, e.holder.PID)
}

// A lockedState is a state directory that this process alone may write to.
// The lock ends with the process, however it ends.
type lockedState struct {
	*stateDir
	f *os.File
}

// lock takes s for this process. If another has it, lock waits until ctx ends
// and then returns a heldError; an ended ctx means one try.
func (s *stateDir) lock(ctx context.Context, mode string) (*lockedState, error) {
	f, err := os.OpenFile(s.file("lock"), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, unwritable(s.path, err)
	}
	if err := waitLock(ctx, f); err != nil {
		f.Close()
		if errors.Is(err, errLocked) {
			return nil, &heldError{s.path, s.readHolder()}
		}
		return nil, fmt.Errorf("lock %s: %w", s.file("lock"), err)
	}
	if err := failpoint.Hit("state.lock.taken"); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", s.file("lock"), err)
	}
	l := &lockedState{s, f}
	if err := l.describe(holder{PID: os.Getpid(), Mode: mode}); err != nil {
		f.Close()
		return nil, unwritable(s.path, err)
	}
	return l, nil
}

// describe tells others who holds the lock.
func (l *lockedState) describe(h holder) error {
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

func (l *lockedState) unlock() { l.f.Close() }

// held reports who has s, without disturbing anyone who is about to take it.
func (s *stateDir) held() (holder, bool, error) {
	f, err := os.OpenFile(s.file("lock"), os.O_RDWR|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return holder{}, false, nil
	}
	if err != nil {
		return holder{}, false, unwritable(s.path, err)
	}
	defer f.Close()
	l := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &l); err != nil {
		return holder{}, false, fmt.Errorf("read the lock of %s: %w", s.path, err)
	}
	if l.Type == unix.F_UNLCK {
		return holder{}, false, nil
	}
	return s.readHolder(), true, nil
}

func (s *stateDir) readHolder() holder {
	var h holder
	raw, err := readSmall(s.file("lock"))
	if err == nil {
		_ = json.Unmarshal(raw, &h) // a holder that has not yet written says nothing of itself
	}
	return h
}

var errLocked = errors.New("locked by another process")

// waitLock takes the exclusive lock of f, asking again until ctx ends. The
// lock belongs to the open file (fcntl(2), "Open file description locks"), so
// that it can be looked at without being taken.
func waitLock(ctx context.Context, f *os.File) error {
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
