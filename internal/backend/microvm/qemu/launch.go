package qemu

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
	rules "gvisor.dev/gvisor/pkg/seccomp"

	"github.com/enclave-run/enclave/internal/seccomp"
)

// launch is what the launcher is told.
type launch struct {
	Argv     []string
	FileSize int64 // bytes that the guest's memory, a file without a name, needs
}

// mainLaunch is the process that becomes QEMU. It was made while the VMM was
// still root, so that it has process ids of its own and the VMM needs no right to
// start programs; it is as confined as the VMM from its first instruction. It
// waits to be told the command line.
func mainLaunch() error {
	f := os.NewFile(controlFD, "control")
	b, err := io.ReadAll(io.LimitReader(f, 64<<10))
	if err != nil {
		return fmt.Errorf("vmm-qemu: read the command line: %w", err)
	}
	f.Close()
	var l launch
	if err := json.Unmarshal(b, &l); err != nil || len(l.Argv) == 0 {
		return errors.New("vmm-qemu: the VMM is gone")
	}
	size := uint64(l.FileSize)
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: size, Max: size}); err != nil {
		return fmt.Errorf("vmm-qemu: limit files: %w", err)
	}
	if err := dieWithVMM(); err != nil {
		return fmt.Errorf("vmm-qemu: %w", err)
	}
	if err := forbid(); err != nil {
		return fmt.Errorf("vmm-qemu: %w", err)
	}
	err = syscall.Exec(l.Argv[0], l.Argv, []string{})
	return fmt.Errorf("start %s: %w", l.Argv[0], err)
}

// dieWithVMM has the kernel kill QEMU when the VMM is gone. The signal is a
// property of a thread (prctl(2)), so the exec must come from this one.
func dieWithVMM() error {
	runtime.LockOSThread() // and it ends with the exec
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("die with the VMM: %w", err)
	}
	// One that died before has closed its end. Its process id can't be asked for:
	// it is of another namespace.
	poll := []unix.PollFd{{Fd: monitorFD, Events: unix.POLLRDHUP}}
	if _, err := unix.Poll(poll, 0); err != nil {
		return fmt.Errorf("look for the VMM: %w", err)
	}
	if poll[0].Revents != 0 {
		return errors.New("the VMM is gone")
	}
	return nil
}

// forbid installs a filter that outlives the exec, under which QEMU installs its
// own. QEMU's is a list of what is denied, and knows neither sockets nor what
// came to the kernel since: this is the rest of what no machine without a network
// needs. A list of what is allowed would be of one version of its libraries.
func forbid() error {
	all := rules.MatchAll{}
	calls := map[uintptr]rules.SyscallRule{}
	for _, nr := range []uintptr{
		// Other networks, processes and namespaces.
		unix.SYS_SOCKET, unix.SYS_BIND, unix.SYS_LISTEN, unix.SYS_CONNECT, unix.SYS_ACCEPT, unix.SYS_ACCEPT4,
		unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_PIDFD_OPEN, unix.SYS_PIDFD_GETFD,
		unix.SYS_PIDFD_SEND_SIGNAL, unix.SYS_KCMP, unix.SYS_UNSHARE, unix.SYS_SETNS, unix.SYS_PROCESS_MADVISE,
		// File systems.
		unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT, unix.SYS_FSOPEN, unix.SYS_FSCONFIG,
		unix.SYS_FSMOUNT, unix.SYS_FSPICK, unix.SYS_MOVE_MOUNT, unix.SYS_OPEN_TREE, unix.SYS_MOUNT_SETATTR,
		unix.SYS_NAME_TO_HANDLE_AT, unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_FANOTIFY_INIT, unix.SYS_QUOTACTL,
		// The kernel's larger surfaces.
		unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD, unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER,
		unix.SYS_IO_URING_REGISTER, unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_KEYCTL, unix.SYS_INIT_MODULE,
		unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_KEXEC_LOAD, unix.SYS_REBOOT, unix.SYS_SWAPON, unix.SYS_SWAPOFF,
		unix.SYS_SYSLOG, unix.SYS_ACCT, unix.SYS_VMSPLICE, unix.SYS_LANDLOCK_CREATE_RULESET, unix.SYS_MEMFD_SECRET,
		unix.SYS_SHMGET, unix.SYS_MSGGET, unix.SYS_SEMGET, unix.SYS_MQ_OPEN,
	} {
		calls[nr] = all
	}
	const spaces = unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP
	var clones rules.Or
	for bit := uintptr(1); bit <= spaces; bit <<= 1 {
		if spaces&bit != 0 {
			clones = append(clones, rules.PerArg{rules.MaskedEqual(bit, bit)})
		}
	}
	calls[unix.SYS_CLONE] = clones
	return seccomp.Load(calls, rules.ReturnError.Code(uint16(unix.EPERM)), rules.Allow)
}
