package gvisor

import (
	"context"
	"errors"
	"net"
	"os"

	"github.com/enclave-run/enclave/internal/backend/local"
	"github.com/enclave-run/enclave/internal/failpoint"
)

// Listen opens the socket /.enclave/sock of the sandbox. Only root of that
// sandbox may connect, and nobody before it has a user; the directory is read-only in the sandbox, so the socket
// can't be swapped.
func (d *driver) Listen(ctx context.Context, s *local.Sandbox) (net.Listener, error) {
	l, err := local.Socket(ctx, s.Path(mountDir), local.SocketFile)
	if err != nil {
		return nil, err
	}
	if err := failpoint.Hit("gvisor.listen.bound"); err != nil {
		l.Close()
		return nil, err
	}
	user, err := s.User()
	if err == nil {
		err = local.Own(s.Path(mountDir, local.SocketFile), int(user))
	}
	if err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// Place makes the sandbox's directory and the one it sees as /.enclave. Until Make
// gives the first to the sandbox's user only root enters it; in the second everyone
// there may pass.
func (d *driver) Place(s *local.Sandbox) error {
	for _, at := range []struct {
		path string
		mode os.FileMode
	}{{s.Dir, 0o700}, {s.Path(mountDir), 0o755}} {
		err := os.Mkdir(at.path, at.mode)
		if err == nil {
			err = os.Chmod(at.path, at.mode) // the umask may have taken what sandboxes need
		}
		if err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}
