package qemu

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/seccomp"
)

// confine gives up what the VMM process still has and does not need: it reads
// queues that a hostile guest fills. It is jailed already; see enter. What it
// keeps: threads, memory, the descriptors that it was given, reading its jail's
// files, connecting to unix sockets, of which its jail has this machine's alone,
// and killing child, which is QEMU.
func confine(child int) error {
	if os.Geteuid() == 0 || os.Getuid() == 0 {
		return errors.New("it does not run as root")
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("become undumpable: %w", err)
	}
	debug.SetMemoryLimit(64 << 20)
	all := seccomp.MatchAll{}
	rules := map[uintptr]seccomp.SyscallRule{}
	for _, nr := range append([]uintptr{
		// Memory and threads of the Go runtime.
		unix.SYS_MUNMAP, unix.SYS_MADVISE, unix.SYS_MINCORE, unix.SYS_BRK, unix.SYS_FUTEX,
		unix.SYS_SCHED_YIELD, unix.SYS_SCHED_GETAFFINITY, unix.SYS_SET_ROBUST_LIST, unix.SYS_RSEQ,
		unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_SIGALTSTACK,
		unix.SYS_EXIT, unix.SYS_EXIT_GROUP, unix.SYS_RESTART_SYSCALL,
		unix.SYS_NANOSLEEP, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_CLOCK_GETTIME, unix.SYS_GETTIMEOFDAY,
		unix.SYS_GETPID, unix.SYS_GETTID, unix.SYS_GETUID, unix.SYS_GETEUID, unix.SYS_GETGID, unix.SYS_GETEGID,
		unix.SYS_GETRANDOM, unix.SYS_UNAME, unix.SYS_WAIT4,
		// Descriptors.
		unix.SYS_READ, unix.SYS_WRITE, unix.SYS_READV, unix.SYS_WRITEV, unix.SYS_PREAD64, unix.SYS_PWRITE64, unix.SYS_LSEEK,
		unix.SYS_CLOSE, unix.SYS_FCNTL, unix.SYS_FSTAT, unix.SYS_FTRUNCATE, unix.SYS_PIPE2, unix.SYS_EVENTFD2, unix.SYS_PPOLL,
		unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_PWAIT,
		unix.SYS_TIMERFD_CREATE, unix.SYS_TIMERFD_SETTIME,
		// Sockets.
		unix.SYS_ACCEPT4, unix.SYS_CONNECT, unix.SYS_GETSOCKNAME, unix.SYS_GETPEERNAME, unix.SYS_SETSOCKOPT, unix.SYS_GETSOCKOPT,
		unix.SYS_SENDTO, unix.SYS_RECVFROM, unix.SYS_SENDMSG, unix.SYS_RECVMSG, unix.SYS_SHUTDOWN,
	}, archSystemCalls...) {
		rules[nr] = all
	}
	any := seccomp.AnyValue{}
	rules[unix.SYS_MMAP] = seccomp.PerArg{any, any, seccomp.MaskedEqual(unix.PROT_EXEC, 0)}
	rules[unix.SYS_MPROTECT] = seccomp.PerArg{any, any, seccomp.MaskedEqual(unix.PROT_EXEC, 0)}
	rules[unix.SYS_OPENAT] = seccomp.PerArg{any, any, seccomp.MaskedEqual(unix.O_ACCMODE|unix.O_CREAT|unix.O_TRUNC|unix.O_PATH, unix.O_RDONLY)}
	rules[unix.SYS_PRLIMIT64] = seccomp.PerArg{any, any, seccomp.EqualTo(0)} // reading only
	rules[unix.SYS_TGKILL] = seccomp.PerArg{seccomp.EqualTo(uintptr(os.Getpid()))}
	rules[unix.SYS_KILL] = seccomp.PerArg{seccomp.EqualTo(uintptr(child))}
	const thread = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_THREAD
	const threadMay = thread | unix.CLONE_SYSVSEM | unix.CLONE_SETTLS | unix.CLONE_PARENT_SETTID | unix.CLONE_CHILD_CLEARTID
	rules[unix.SYS_CLONE] = seccomp.And{
		seccomp.PerArg{seccomp.MaskedEqual(thread, thread)},
		seccomp.PerArg{seccomp.BitsAllowlist(threadMay)},
	}
	const kind = 0xf // without SOCK_CLOEXEC and SOCK_NONBLOCK
	rules[unix.SYS_SOCKET] = seccomp.PerArg{seccomp.EqualTo(unix.AF_UNIX), seccomp.MaskedEqual(kind, unix.SOCK_STREAM)}
	return install(seccomp.Program{
		RuleSets: []seccomp.RuleSet{
			{Rules: seccomp.MakeSyscallRules(rules), Action: seccomp.Allow},
			// A C library asks for this before it falls back to clone.
			{Rules: seccomp.MakeSyscallRules(map[uintptr]seccomp.SyscallRule{unix.SYS_CLONE3: all}), Action: seccomp.ReturnError.Code(uint16(unix.ENOSYS))},
		},
		Options: seccomp.ProgramOptions{
			DefaultAction:     seccomp.ReturnError.Code(uint16(unix.EPERM)),
			BadArchAction:     seccomp.KillProcess,
			SkipOptimizations: true,
		},
	})
}
