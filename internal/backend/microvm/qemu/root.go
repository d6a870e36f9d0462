package qemu

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// shed empties what this thread's programs could ever get back: its capability
// bounding set, and the privileges of files that are executed. It keeps what it
// has: become gives that up.
func shed() error {
	for c := uintptr(0); ; c++ {
		err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) && c > unix.CAP_SYS_ADMIN {
			break // the kernel has no more
		}
		if err != nil {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("allow no new privileges: %w", err)
	}
	for _, l := range []struct {
		what  int
		limit uint64
	}{{unix.RLIMIT_NOFILE, maxFiles}, {unix.RLIMIT_CORE, 0}} {
		// Not os/syscall's Setrlimit, which remembers the old one for children.
		if err := unix.Prlimit(0, l.what, &unix.Rlimit{Cur: l.limit, Max: l.limit}, nil); err != nil {
			return fmt.Errorf("set a limit: %w", err)
		}
	}
	return nil
}

// become makes this thread, and no other, uid's without any capability. Go's own
// functions would do it for all threads, of which the exec leaves none.
func become(uid, gid int) error {
	// The VMM writes one file: the last of the guest's console.
	if err := unix.Prlimit(0, unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 2 * kept, Max: 2 * kept}, nil); err != nil {
		return fmt.Errorf("limit files: %w", err)
	}
	for _, call := range []struct {
		name       string
		nr         uintptr
		a1, a2, a3 uintptr
	}{
		{"setgroups", unix.SYS_SETGROUPS, 0, 0, 0},
		{"setresgid", unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)},
		{"setresuid", unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)},
	} {
		if _, _, errno := syscall.RawSyscall(call.nr, call.a1, call.a2, call.a3); errno != 0 {
			return fmt.Errorf("%s: %w", call.name, errno)
		}
	}
	// Inheritable ones too, which a change of user leaves.
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&header, &none[0]); err != nil {
		return fmt.Errorf("drop all capabilities: %w", err)
	}
	return nil
}

// startLauncher starts the process that will be QEMU, a child of this thread, which
// is the VMM's first after its exec and lives as long as it. It gets its ends of what
// connects it to this one, whose ends are noted in in.
func (in *inside) startLauncher(o options) error {
	var theirs [4]int // by descriptor, from controlFD
	for i, mine := range []*int{&in.Control, &in.Monitor, &in.Console, &in.Device} {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		if *mine, err = keep(pair[0]); err != nil {
			return err
		}
		theirs[i] = pair[1]
	}
	var words, nothing [2]int
	if err := errors.Join(unix.Pipe2(words[:], unix.O_CLOEXEC), unix.Pipe2(nothing[:], unix.O_CLOEXEC)); err != nil {
		return err
	}
	var err error
	if in.Words, err = keep(words[0]); err != nil {
		return err
	}
	child, err := syscall.ForkExec(selfPath, []string{"enclave", Command, stageLaunch}, &syscall.ProcAttr{
		Dir: "/",
		Env: []string{},
		// Standard input is at its end; after the first three come controlFD and so on.
		Files: []uintptr{uintptr(nothing[0]), uintptr(words[1]), uintptr(words[1]), uintptr(theirs[0]), uintptr(theirs[1]), uintptr(theirs[2]), uintptr(theirs[3])},
		Sys: &syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWPID,
			Credential: &syscall.Credential{Uid: uint32(o.UID), Gid: uint32(o.GID), Groups: []uint32{}},
			Setsid:     true,
		},
	})
	if err != nil {
		return err
	}
	in.Child = child
	return nil
}
