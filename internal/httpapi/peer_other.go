//go:build !linux

package httpapi

import "net"

// ownPeer is false where the other end of a socket can't be known.
func ownPeer(*net.UnixConn) bool { return false }
