package gateway

import "golang.org/x/sys/unix"

// archSystemCalls are allowed system calls that other machines do not have.
var archSystemCalls = []uintptr{unix.SYS_EPOLL_WAIT, unix.SYS_NEWFSTATAT, unix.SYS_ARCH_PRCTL, unix.SYS_GETRLIMIT}
