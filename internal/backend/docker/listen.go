package docker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/backend"
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
	l, err := keep.Socket(ctx, filepath.Join(s.dir, mountDir), socketFile)
	if err != nil {
		return nil, err
	}
	// The guest is root, which here is the host's; a workload never is.
	if err := keep.Own(filepath.Join(s.dir, mountDir, socketFile), 0); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// makeDir makes the sandbox's directory and those in it. On the host only root
// enters it; the sandbox sees two of them, and everyone there may pass.
func (s *sandbox) makeDir() error {
	for _, d := range []struct {
		path string
		mode os.FileMode
	}{{s.dir, 0o700}, {filepath.Join(s.dir, mountDir), 0o755}, {filepath.Join(s.dir, sealDir), 0o755}, {filepath.Join(s.dir, etcDir), 0o755}} {
		// The umask may have taken what sandboxes need; what is mounted on seal
		// can't be changed, and need not be.
		err := os.Mkdir(d.path, d.mode)
		if err == nil {
			err = os.Chmod(d.path, d.mode)
		}
		if err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}

// seal mounts mnt at seal, read-only and without devices or set-user-ID programs.
// Docker has no such options for a directory that it mounts, and keeps those of
// the mount that it is given: one that could be written would let root in the
// sandbox write to this host's disk, and swap the socket. It is never there in
// any other way.
func (s *sandbox) seal() error {
	tree, err := unix.OpenTree(unix.AT_FDCWD, filepath.Join(s.dir, mountDir), unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return fmt.Errorf("seal the socket's directory: %w", err)
	}
	defer unix.Close(tree)
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{
		Attr_set:    unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV,
		Propagation: unix.MS_PRIVATE,
	}); err != nil {
		return fmt.Errorf("seal the socket's directory: %w", err)
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, filepath.Join(s.dir, sealDir), unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("seal the socket's directory: %w", err)
	}
	return nil
}

// unseal undoes seal. What is not mounted, or not there, is unsealed.
func (s *sandbox) unseal() error {
	for {
		err := unix.Unmount(filepath.Join(s.dir, sealDir), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		switch {
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
			return nil
		case err != nil:
			return fmt.Errorf("unmount the socket's directory: %w", err)
		}
	}
}
