package wire

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
)

// Dial connects the guest to the core at address, which has the form
// "unix:/path" or "vsock:CID:PORT", and sends the preface of kind k with key.
func Dial(ctx context.Context, address string, k Kind, key Key) (net.Conn, error) {
	conn, err := dialAddress(ctx, address)
	if err != nil {
		return nil, err
	}
	if err := Greet(conn, k, key); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

func dialAddress(ctx context.Context, address string) (net.Conn, error) {
	network, rest, _ := strings.Cut(address, ":")
	switch {
	case network == "unix" && rest != "":
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", rest)
		if err != nil {
			return nil, fmt.Errorf("dial the core: %w", err)
		}
		return conn, nil
	case network == "vsock":
		cid, port, ok := parseVsock(rest)
		if !ok {
			break
		}
		conn, err := DialVsock(ctx, cid, port)
		if err != nil {
			return nil, fmt.Errorf("dial the core: %w", err)
		}
		return conn, nil
	}
	return nil, fmt.Errorf("address %q is not of the form unix:/path or vsock:CID:PORT", address)
}

func parseVsock(s string) (cid, port uint32, ok bool) {
	a, b, _ := strings.Cut(s, ":")
	c, cerr := strconv.ParseUint(a, 10, 32)
	p, perr := strconv.ParseUint(b, 10, 32)
	return uint32(c), uint32(p), cerr == nil && perr == nil
}
