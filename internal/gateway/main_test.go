package gateway

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/enclave-run/enclave/internal/egress"
)

// TestMain makes the test binary a gateway process if it is told to be one.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "gateway-process" {
		var err error
		switch os.Args[2] {
		case "system":
			err = RunChild(context.Background())
		case "loopback": // the same, with a resolver at args[3] and loopback opened
			err = runChild(context.Background(), func(t egress.Table) (Config, error) {
				c, err := System(t)
				c.Resolver = ResolverOver(func(ctx context.Context, network, _ string) (net.Conn, error) {
					return (&net.Dialer{}).DialContext(ctx, network, os.Args[3])
				})
				c.Table = c.Table.Opened(netip.MustParsePrefix("127.0.0.0/8"))
				c.Dialer = systemDialer{func(netip.Addr) bool { return false }}
				return c, err
			})
		default:
			err = rogue(os.Args[2])
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}
