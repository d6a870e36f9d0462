package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/enclave-run/enclave/internal/backend/all"
	"github.com/enclave-run/enclave/internal/egress"
	"github.com/enclave-run/enclave/internal/image"
)

// Config is how a host is looked at. Every field but Kernels, Options and Quick is
// required.
type Config struct {
	State    string   // the state directory, which need not exist
	Backends []string // those to put to the test, the first being the one that is to run here
	Kernels  string   // the directory of guest kernels, which need not exist

	// Options name the programs of others that backends run on, which need not be
	// there.
	all.Options

	Quick bool // leave out the contract and the posture, which start sandboxes
	Now   func() time.Time

	// Programs unpacks the programs that enclave brings along into bin, verifies
	// them and returns their paths.
	Programs func(bin string) (runsc, guest string, err error)

	// Scratch makes a room on the file system of the state directory. remove
	// destroys the sandboxes that are left in it, and the room.
	Scratch func(context.Context) (r Room, remove func(context.Context) error, err error)

	// Gateway starts the gateway process as the server does, and stops it. Its user
	// is GatewayUser.
	Gateway     func(context.Context) error
	GatewayUser int

	// Table is the table of addresses that the server judges by.
	Table func() (*egress.Table, error)

	// Holder says which server has the state directory, if any does.
	Holder func() (held bool, pid int, mode, listen string, err error)

	// Dial connects to the server's socket in the state directory.
	Dial func(context.Context) (net.Conn, error)

	// AtOnce says how many sessions with default limits run at once on a backend,
	// and which resource one more would wait for.
	AtOnce func(backend string) (n int, lack string, err error)

	// Images opens the images of a state directory that exists.
	Images func() (*image.Store, error)
}

// A Room is where what is made for a test is.
type Room struct {
	Dir      string // a state directory that is empty
	Programs string // an empty directory
	Instance string // marks the sandboxes
}

func (c Config) validate() error {
	for name, missing := range map[string]bool{
		"state directory": c.State == "", "backend": len(c.Backends) == 0, "clock": c.Now == nil,
		"programs": c.Programs == nil, "scratch directory": c.Scratch == nil, "gateway": c.Gateway == nil,
		"table": c.Table == nil, "holder": c.Holder == nil, "dialer": c.Dial == nil, "images": c.Images == nil,
		"gateway user": c.GatewayUser == 0, "count of sessions": c.AtOnce == nil,
	} {
		if missing {
			return errors.New("doctor: no " + name)
		}
	}
	for _, b := range c.Backends {
		if _, err := all.Named(b); err != nil {
			return fmt.Errorf("doctor: %w", err)
		}
	}
	return nil
}

// loopback reports whether only this host reaches listen.
func loopback(listen string) bool {
	name, _, err := net.SplitHostPort(listen)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(strings.Trim(name, "[]"))
	return name == "localhost" || err == nil && ip.IsLoopback()
}
