package gvisor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/failpoint"
)

// Listen opens the socket /.enclave/sock of the sandbox. Only root of that
// sandbox may connect; the directory is read-only in the sandbox, so the socket
// can't be swapped. After a restart the same call opens it anew.
func (b *Backend) Listen(ctx context.Context, id backend.ID) (net.Listener, error) {
	s, err := b.acquire(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("listen for sandbox %s: %w", id, err)
	}
	defer s.release()
	l, err := s.listen(ctx)
	if err != nil {
		return nil, fmt.Errorf("listen for sandbox %s: %w", id, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.listener = l
	return l, nil
}

func (s *sandbox) listen(ctx context.Context) (net.Listener, error) {
	if err := s.makeDir(); err != nil {
		return nil, err
	}
	if err := failpoint.Hit("gvisor.listen.made"); err != nil {
		return nil, err
	}
	dir, err := os.Open(filepath.Join(s.dir, mountDir))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	// A socket's address has at most 107 bytes; the state directory may have
	// more.
	path := fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), socketFile)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	// Its address is a path through a descriptor that is closed now.
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := failpoint.Hit("gvisor.listen.bound"); err != nil {
		l.Close()
		return nil, err
	}
	owner := firstUser(s.id)
	if err := errors.Join(os.Chown(path, owner, owner), os.Chmod(path, 0o600)); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// makeDir makes the sandbox's directory and the one it sees as /.enclave. Every
// user may pass through them, and list neither.
func (s *sandbox) makeDir() error {
	for dir, mode := range map[string]os.FileMode{s.dir: 0o711, filepath.Join(s.dir, mountDir): 0o755} {
		if err := os.MkdirAll(dir, mode); err != nil {
			return err
		}
	}
	return errors.Join(os.Chmod(s.dir, 0o711), os.Chmod(filepath.Join(s.dir, mountDir), 0o755))
}
