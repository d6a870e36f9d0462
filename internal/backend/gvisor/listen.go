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
	"github.com/enclave-run/enclave/internal/keep"
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
	l, err := keep.Socket(ctx, filepath.Join(s.dir, mountDir), socketFile)
	if err != nil {
		return nil, err
	}
	if err := failpoint.Hit("gvisor.listen.bound"); err != nil {
		l.Close()
		return nil, err
	}
	if err := keep.Own(filepath.Join(s.dir, mountDir, socketFile), firstUser(s.id)); err != nil {
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
