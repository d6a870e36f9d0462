package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/enclave-run/enclave/internal/backend/all"
	"github.com/enclave-run/enclave/internal/image"
	"github.com/enclave-run/enclave/internal/statedir"
	"golang.org/x/sys/unix"
)

// StopBackground ends the background control plane of s, if there is one, and
// waits until it has gone.
func StopBackground(ctx context.Context, s *statedir.Dir) error {
	h, held, err := s.Held()
	if err != nil || !held || h.Mode != statedir.ModeEmbedded || h.PID <= 1 {
		return err
	}
	// The lock proves that its holder lives, and a pidfd that it is the one that
	// gets the signal (pidfd_open(2)).
	fd, err := unix.PidfdOpen(h.PID, 0)
	if err != nil {
		return nil // it has just ended by itself
	}
	defer unix.Close(fd)
	if again, held, err := s.Held(); err != nil || !held || again.PID != h.PID {
		return err
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("stop the background control plane (process %d): %w", h.PID, err)
	}
	// What it does not end in time, the second signal leaves to us: its sandboxes
	// are destroyed next, and nobody will read what they were about to say.
	for _, wait := range []time.Duration{time.Second, StopTime} {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(wait.Milliseconds()))
		if n > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for process %d: %w", h.PID, err)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		_ = unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0)
	}
	return fmt.Errorf("the background control plane (process %d) does not end: kill -9 %d", h.PID, h.PID)
}

// Remove destroys what the instance of s has in the kernel and then removes
// s itself. h is where its sandboxes are, or, for another directory on the same host,
// what else they are opened on.
func Remove(ctx context.Context, s *statedir.Locked, h all.Host) error {
	return s.Remove(func() error { return destroyAll(ctx, s, h) })
}

// destroyAll destroys every sandbox of s's instance.
func destroyAll(ctx context.Context, s *statedir.Locked, h all.Host) error {
	if os.Geteuid() != 0 {
		return nil // without root there are only simulated sandboxes, which end with their process
	}
	images, err := image.Open(s.File("images"))
	if err != nil {
		return err
	}
	h.Dir, h.Instance, h.Images, h.Kernels = s.Path, s.Instance, images, s.File("kernels")
	for _, k := range all.Kinds() {
		if err := k.Clear(ctx, h); err != nil {
			return err
		}
	}
	return nil
}

// Sweep removes the state directories of demos that were killed.
func Sweep(ctx context.Context, s *statedir.Dir, h all.Host) error {
	entries, err := os.ReadDir(s.File("tmp"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		t, err := statedir.Find(s.File("tmp", e.Name()))
		if err != nil {
			continue // not a state directory: nothing outside it depends on it
		}
		ended, cancel := context.WithCancel(ctx)
		cancel()
		locked, err := t.Lock(ended, statedir.ModeCommand)
		if errors.As(err, new(*statedir.HeldError)) {
			continue // a demo that is running
		}
		if err != nil {
			return err
		}
		err = Remove(ctx, locked, h)
		locked.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}
