package seccomp

import "golang.org/x/sys/unix"

// archCalls are allowed system calls that not all processors' kernels have.
var archCalls = []uintptr{unix.SYS_EPOLL_WAIT, unix.SYS_NEWFSTATAT, unix.SYS_ARCH_PRCTL, unix.SYS_GETRLIMIT}
