package gateway

import "golang.org/x/sys/unix"

// archSystemCalls are allowed system calls that other machines do not have.
var archSystemCalls = []uintptr{unix.SYS_FSTATAT, unix.SYS_GETRLIMIT}
