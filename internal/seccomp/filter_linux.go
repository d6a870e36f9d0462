// Package seccomp is the filter of system calls of those programs of ours that
// read what is hostile: the gateway, and the monitor of an emulated machine. It
// refuses whatever is not named; what else a process gives up, and when, is its
// own.
package seccomp

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/bpf"
	"gvisor.dev/gvisor/pkg/seccomp"
)

// Allowed is what a process may ask of the kernel beyond what every Go program
// needs: threads, memory that is never executable, the descriptors that it has,
// connections that it was given, and reading files. The zero value allows no
// more: no socket is made, no file written, no program started, and no process
// but this one signalled.
type Allowed struct {
	Calls []uintptr                       // allowed with any arguments
	Rules map[uintptr]seccomp.SyscallRule // allowed with these
}

// Install filters all threads of this process, for ever: what is not allowed fails
// with EPERM. Rlimits are read, and no longer set.
func (a Allowed) Install() error {
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
	}, append(archCalls, a.Calls...)...) {
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
	for nr, r := range a.Rules {
		rules[nr] = r
	}
	return Load(rules, seccomp.Allow, seccomp.ReturnError.Code(uint16(unix.EPERM)))
}

// Socket allows to make sockets of a family and a type.
func Socket(family, kind uintptr) seccomp.SyscallRule {
	const kinds = 0xf // without SOCK_CLOEXEC and SOCK_NONBLOCK
	return seccomp.PerArg{seccomp.EqualTo(family), seccomp.MaskedEqual(kinds, kind)}
}

// Load filters all threads of this process: what a rule matches has action, all
// else otherwise. Whatever the rules say, clone3, whose flags no filter sees, is as
// if the kernel did not have it: a C library then falls back to clone.
//
// So are the system calls of the x32 ABI, if this kernel has it. They come with
// the architecture of amd64 and another number for each call (seccomp(2)), and
// would pass by every rule that denies one.
func Load(rules map[uintptr]seccomp.SyscallRule, action, otherwise seccomp.Action) error {
	instructions, err := build(rules, action, otherwise)
	if err != nil {
		return fmt.Errorf("build the system call filter: %w", err)
	}
	if err := seccomp.SetFilter(instructions); err != nil { // on all threads, no_new_privs included
		return fmt.Errorf("install the system call filter: %w", err)
	}
	return nil
}

func build(rules map[uintptr]seccomp.SyscallRule, action, otherwise seccomp.Action) ([]bpf.Instruction, error) {
	none := seccomp.ReturnError.Code(uint16(unix.ENOSYS))
	program := seccomp.Program{
		RuleSets: []seccomp.RuleSet{
			{Rules: seccomp.MakeSyscallRules(rules), Action: action},
			{Rules: seccomp.MakeSyscallRules(map[uintptr]seccomp.SyscallRule{unix.SYS_CLONE3: seccomp.MatchAll{}}), Action: none},
		},
		Options: seccomp.ProgramOptions{
			DefaultAction:     otherwise,
			BadArchAction:     seccomp.KillProcess,
			SkipOptimizations: true,
		},
	}
	instructions, _, err := program.Build()
	if err != nil {
		return nil, err
	}
	const (
		number = 0          // its offset in struct seccomp_data
		x32    = 0x40000000 // the bit that marks its numbers; none of arm64's is as high
	)
	return append([]bpf.Instruction{
		bpf.Stmt(bpf.Ld|bpf.Abs|bpf.W, number),
		bpf.Jump(bpf.Jmp|bpf.Jge|bpf.K, x32, 0, 1),
		bpf.Stmt(bpf.Ret|bpf.K, unix.SECCOMP_RET_ERRNO|uint32(unix.ENOSYS)),
	}, instructions...), nil
}
