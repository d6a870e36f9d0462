//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/wire"
)

func mount(source, target, kind string, flags uintptr, data string) error {
	if err := os.MkdirAll(target, 0o755); err != nil && !errors.Is(err, unix.EROFS) {
		return fmt.Errorf("make %s: %w", target, err)
	}
	if err := unix.Mount(source, target, kind, flags, data); err != nil {
		return fmt.Errorf("mount %s: %w", target, err)
	}
	return nil
}

// bind shows what is at source at target, with flags.
func bind(source, target string, flags uintptr) error {
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s: %w", target, err)
	}
	// The flags of a bind mount take a second call (mount(2)).
	if err := unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|flags, ""); err != nil {
		return fmt.Errorf("mount %s: %w", target, err)
	}
	return nil
}

const still = unix.MS_NOSUID | unix.MS_NODEV // nothing that grants anything

// makeRoot makes the image's disk the root, with what a sandbox has mounted in it.
func makeRoot(s wire.Setup) error {
	in := func(name string) string { return rootPath + name }
	if err := mount(filepath.Join(devicesPath, "vda"), rootPath, "erofs", unix.MS_RDONLY|still, ""); err != nil {
		return fmt.Errorf("the image's disk is damaged, or none: %w", err)
	}
	if err := mount("proc", in("/proc"), "proc", still|unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	if err := makeDevices(in("/dev"), s.Shm); err != nil {
		return err
	}
	if err := mount("tmpfs", in(wire.RunDir), "tmpfs", still|unix.MS_NOEXEC, fmt.Sprintf("mode=0755,size=%d", s.Run)); err != nil {
		return err
	}
	if err := mount("tmpfs", diskPath, "tmpfs", still, fmt.Sprintf("mode=0700,size=%d", s.Disk)); err != nil {
		return err
	}
	if err := divide(diskPath, rootPath); err != nil {
		return err
	}
	// The guest program, which the result command is.
	if err := bind(filepath.Dir(wire.Guest), in(filepath.Dir(wire.Guest)), still|unix.MS_RDONLY); err != nil {
		return err
	}
	// As switch_root(8) does it: pivot_root(2) can't move the initial file system.
	if err := unix.Chdir(rootPath); err != nil {
		return fmt.Errorf("enter the root: %w", err)
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("change the root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return fmt.Errorf("enter the root: %w", err)
	}
	return nil
}

// divide makes /work and /tmp below root two directories of the file system at
// disk: together they may have as many bytes as it has.
func divide(disk, root string) error {
	for _, name := range []string{wire.WorkDir, "/tmp"} {
		dir := disk + name
		if err := unix.Mkdir(dir, 0o700); err != nil {
			return fmt.Errorf("make %s: %w", name, err)
		}
		if err := unix.Chmod(dir, unix.S_ISVTX|0o777); err != nil { // whatever the umask
			return fmt.Errorf("make %s: %w", name, err)
		}
		if err := bind(dir, root+name, still); err != nil {
			return err
		}
	}
	return nil
}

// takeDisk makes /work and /tmp of the file system at disk, and takes that away
// from where it was.
func takeDisk(disk string) error {
	// runsc mounts a /tmp without a size where it is asked for none.
	if err := unix.Unmount("/tmp", 0); err != nil && err != unix.EINVAL {
		return fmt.Errorf("take the runtime's /tmp away: %w", err)
	}
	if err := divide(disk, ""); err != nil {
		return err
	}
	if err := errors.Join(unix.Unmount(disk, unix.MNT_DETACH), os.Remove(disk)); err != nil {
		return fmt.Errorf("take %s away: %w", disk, err)
	}
	return nil
}

// makeDevices fills dir with the devices that a container has, and no other.
func makeDevices(dir string, shm int64) error {
	if err := mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=0755,size=64k"); err != nil {
		return err
	}
	for _, d := range []struct {
		name         string
		mode         uint32
		major, minor uint32
	}{
		{"null", 0o666, 1, 3}, {"zero", 0o666, 1, 5}, {"full", 0o666, 1, 7}, {"random", 0o666, 1, 8},
		{"urandom", 0o666, 1, 9}, {"tty", 0o666, 5, 0}, {"net/tun", 0o600, 10, 200},
	} {
		path := filepath.Join(dir, d.name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return fmt.Errorf("make %s: %w", d.name, err)
		}
		if err := unix.Mknod(path, unix.S_IFCHR|d.mode, int(unix.Mkdev(d.major, d.minor))); err != nil {
			return fmt.Errorf("make device %s: %w", d.name, err)
		}
	}
	for name, to := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx",
	} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("make a link to a device: %w", err)
		}
	}
	const terminals = "newinstance,ptmxmode=0666,mode=0620,gid=5"
	if err := mount("devpts", filepath.Join(dir, "pts"), "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, terminals); err != nil {
		return err
	}
	if err := mount("tmpfs", filepath.Join(dir, "shm"), "tmpfs", still|unix.MS_NOEXEC, fmt.Sprintf("mode=1777,size=%d", shm)); err != nil {
		return err
	}
	// Devices can be written to, and none can be added.
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("close %s: %w", dir, err)
	}
	return nil
}

// hidden are the paths of which a sandbox sees nothing, as in a container.
var hidden = []string{
	"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
	"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
	"/proc/cmdline", "/proc/config.gz", "/proc/kallsyms", "/proc/modules", "/proc/iomem", "/proc/ioports",
}

// sealed are those that it can only read.
var sealed = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}

// hide covers what is hidden and seals what is sealed.
func hide() error {
	for _, path := range hidden {
		info, err := os.Lstat(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("hide %s: %w", path, err)
		}
		if info.IsDir() {
			err = mount("tmpfs", path, "tmpfs", unix.MS_RDONLY|still|unix.MS_NOEXEC, "size=0,mode=0555")
		} else {
			err = bind(os.DevNull, path, unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NOEXEC)
		}
		if err != nil {
			return err
		}
	}
	for _, path := range sealed {
		if err := bind(path, path, unix.MS_RDONLY|still|unix.MS_NOEXEC); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return nil
}
