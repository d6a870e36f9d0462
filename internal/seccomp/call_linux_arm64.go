package seccomp

import "golang.org/x/sys/unix"

// archCalls are allowed system calls that not all processors' kernels have.
var archCalls = []uintptr{unix.SYS_FSTATAT, unix.SYS_GETRLIMIT}
