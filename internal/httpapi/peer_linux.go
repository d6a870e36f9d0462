package httpapi

import (
	"net"
	"os"
	"syscall"
)

// ownPeer reports whether the other end of c was opened by root or by the user
// that this process runs as. The kernel says so: unix(7), SO_PEERCRED.
func ownPeer(c *net.UnixConn) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	own := false
	err = raw.Control(func(fd uintptr) {
		cred, err := syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
		own = err == nil && (cred.Uid == 0 || int(cred.Uid) == os.Geteuid())
	})
	return err == nil && own
}
