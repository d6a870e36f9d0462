package gvisor

import (
	"context"
	"errors"
	"net"
	"os"

	"github.com/enclave-run/enclave/internal/failpoint"
	"github.com/enclave-run/enclave/internal/keep"
)

// Listen opens the socket /.enclave/sock of the sandbox. Only root of that
// sandbox may connect; the directory is read-only in the sandbox, so the socket
// can't be swapped.
func (d *driver) Listen(ctx context.Context, s *keep.Sandbox) (net.Listener, error) {
	l, err := keep.Socket(ctx, s.Path(mountDir), keep.SocketFile)
	if err != nil {
		return nil, err
	}
	if err := failpoint.Hit("gvisor.listen.bound"); err != nil {
		l.Close()
		return nil, err
	}
	if err := keep.Own(s.Path(mountDir, keep.SocketFile), firstUser(s.ID)); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// Place makes the sandbox's directory and the one it sees as /.enclave. Every
// user may pass through them, and list neither.
func (d *driver) Place(s *keep.Sandbox) error {
	for dir, mode := range map[string]os.FileMode{s.Dir: 0o711, s.Path(mountDir): 0o755} {
		if err := os.MkdirAll(dir, mode); err != nil {
			return err
		}
	}
	return errors.Join(os.Chmod(s.Dir, 0o711), os.Chmod(s.Path(mountDir), 0o755))
}
