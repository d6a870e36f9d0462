package qemu

import "golang.org/x/sys/unix"

// archSystemCalls are allowed system calls that not all processors' kernels have.
var archSystemCalls = []uintptr{unix.SYS_FSTATAT}
