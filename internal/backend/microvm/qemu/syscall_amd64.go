package qemu

import "golang.org/x/sys/unix"

// archSystemCalls are allowed system calls that not all processors' kernels have.
var archSystemCalls = []uintptr{unix.SYS_EPOLL_WAIT, unix.SYS_NEWFSTATAT, unix.SYS_ARCH_PRCTL, unix.SYS_POLL}
