package gateway

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/seccomp"
)

// confine gives up what the gateway process does not need. What it keeps:
// threads, memory, the descriptors it was given, reading files that everybody may
// read (the resolver's configuration is read again when it changes), and
// making connections over IPv4 and IPv6. It cannot be undone.
//
// The order matters: the filter comes last, and forbids to raise the limits.
func confine(memory int64, files uint64) error {
	if os.Geteuid() == 0 || os.Getuid() == 0 {
		return errors.New("the gateway process does not run as root")
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("become undumpable: %w", err)
	}
	for _, l := range []struct {
		what     int
		name     string
		cur, max uint64
	}{
		{unix.RLIMIT_NOFILE, "descriptors", files, files},
		{unix.RLIMIT_DATA, "memory", uint64(memory), uint64(memory)},
		{unix.RLIMIT_FSIZE, "files", 0, 0},
		{unix.RLIMIT_CORE, "core dumps", 0, 0},
	} {
		if err := unix.Setrlimit(l.what, &unix.Rlimit{Cur: l.cur, Max: l.max}); err != nil {
			return fmt.Errorf("limit %s: %w", l.name, err)
		}
	}
	// The collector is to work before the wall is hit: hitting it is death.
	debug.SetMemoryLimit(memory / 4 * 3)
	return filterSystemCalls()
}

// filterSystemCalls installs a seccomp filter on all threads. What it does not
// name fails with EPERM: no file is written, no program started, no other process
// seen, no socket but those of the internet made, nothing listened on.
func filterSystemCalls() error {
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
		unix.SYS_GETRANDOM, unix.SYS_UNAME,
		// Descriptors.
		unix.SYS_READ, unix.SYS_WRITE, unix.SYS_READV, unix.SYS_WRITEV, unix.SYS_PREAD64, unix.SYS_LSEEK,
		unix.SYS_CLOSE, unix.SYS_FCNTL, unix.SYS_FSTAT, unix.SYS_PIPE2, unix.SYS_EVENTFD2,
		unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_PWAIT,
		// Connections.
		unix.SYS_CONNECT, unix.SYS_GETSOCKNAME, unix.SYS_GETPEERNAME, unix.SYS_SETSOCKOPT, unix.SYS_GETSOCKOPT,
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
	const thread = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_THREAD
	const threadMay = thread | unix.CLONE_SYSVSEM | unix.CLONE_SETTLS | unix.CLONE_PARENT_SETTID | unix.CLONE_CHILD_CLEARTID
	rules[unix.SYS_CLONE] = seccomp.And{
		seccomp.PerArg{seccomp.MaskedEqual(thread, thread)},
		seccomp.PerArg{seccomp.BitsAllowlist(threadMay)},
	}
	const kind = 0xf // without SOCK_CLOEXEC and SOCK_NONBLOCK
	var sockets seccomp.Or
	for _, family := range []uintptr{unix.AF_INET, unix.AF_INET6} {
		for _, typ := range []uintptr{unix.SOCK_STREAM, unix.SOCK_DGRAM} {
			sockets = append(sockets, seccomp.PerArg{seccomp.EqualTo(family), seccomp.MaskedEqual(kind, typ)})
		}
	}
	rules[unix.SYS_SOCKET] = sockets

	program := seccomp.Program{
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
	}
	instructions, _, err := program.Build()
	if err != nil {
		return fmt.Errorf("build the system call filter: %w", err)
	}
	if err := seccomp.SetFilter(instructions); err != nil { // on all threads, no_new_privs included
		return fmt.Errorf("install the system call filter: %w", err)
	}
	return nil
}
