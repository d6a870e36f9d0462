package docker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/backend/local"
	"github.com/enclave-run/enclave/internal/failpoint"
)

// Directories in a sandbox's directory.
const (
	mountDir = "mnt"  // the guest and the socket
	sealDir  = "seal" // where mnt is mounted read-only; /.enclave in the sandbox
	etcDir   = "etc"  // the image's own files that Docker would replace
	diskDir  = "disk" // the file system of /work and /tmp
)

// diskDirs are the directories of the file system at diskDir, and of the sandbox's
// root.
var diskDirs = []string{"work", "tmp"}

// Listen opens the socket /.enclave/sock of the sandbox. Only root of that
// sandbox may connect; the directory is read-only in the sandbox, so the socket
// can't be swapped.
func (d *driver) Listen(ctx context.Context, s *local.Sandbox) (net.Listener, error) {
	l, err := local.Socket(ctx, s.Path(mountDir), local.SocketFile)
	if err != nil {
		return nil, err
	}
	if err := failpoint.Hit("docker.listen.bound"); err != nil {
		l.Close()
		return nil, err
	}
	// The guest is root, which here is the host's; a workload never is.
	if err := local.Own(s.Path(mountDir, local.SocketFile), 0); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// Place makes the sandbox's directory and those in it. On the host only root
// enters it; the sandbox sees three of them, and everyone there may pass.
func (d *driver) Place(s *local.Sandbox) error {
	for _, at := range []struct {
		path string
		mode os.FileMode
	}{{s.Dir, 0o700}, {s.Path(mountDir), 0o755}, {s.Path(sealDir), 0o755}, {s.Path(etcDir), 0o755}, {s.Path(diskDir), 0o700}} {
		// The umask may have taken what sandboxes need; what is mounted on them
		// need not be changed.
		err := os.Mkdir(at.path, at.mode)
		if err == nil {
			err = os.Chmod(at.path, at.mode)
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
func seal(s *local.Sandbox) error {
	tree, err := unix.OpenTree(unix.AT_FDCWD, s.Path(mountDir), unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
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
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, s.Path(sealDir), unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("seal the socket's directory: %w", err)
	}
	return nil
}

// mountDisk mounts a file system of size bytes at disk, in memory, and makes in it
// what will be /work and /tmp of the sandbox: its size is a wall for both together.
// Its pages are charged to the group of whoever writes them.
func mountDisk(s *local.Sandbox, size int64) error {
	if err := unix.Mount("tmpfs", s.Path(diskDir), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("size=%d,mode=0700", size)); err != nil {
		return fmt.Errorf("mount the sandbox's files: %w", err)
	}
	for _, name := range diskDirs {
		if err := errors.Join(os.Mkdir(s.Path(diskDir, name), 0o700), os.Chmod(s.Path(diskDir, name), os.ModeSticky|0o777)); err != nil {
			return fmt.Errorf("make /%s: %w", name, err)
		}
	}
	return nil
}

// unmount undoes seal and mountDisk. What is not mounted, or not there, is undone.
func unmount(s *local.Sandbox) error {
	for _, dir := range []string{sealDir, diskDir} {
		for done := false; !done; {
			err := unix.Unmount(s.Path(dir), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
			switch {
			case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
				done = true
			case err != nil:
				return fmt.Errorf("unmount %s of the sandbox: %w", dir, err)
			}
		}
	}
	return nil
}
