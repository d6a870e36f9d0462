package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/enclave-run/enclave/internal/backend/microvm"
	"github.com/enclave-run/enclave/internal/egress"
	"github.com/enclave-run/enclave/internal/image"
)

const (
	gvisorBackend      = "gvisor"
	dockerBackend      = "docker"
	qemuBackend        = "qemu"
	firecrackerBackend = "firecracker"
	simulatorBackend   = "simulator"
)

// Config is how a host is looked at. Every field but Docker, Firecracker, Jailer and
// Quick is required.
type Config struct {
	State    string   // the state directory, which need not exist
	Backends []string // those to put to the test, the first being the one that is to run here
	Docker   string   // address of the Docker daemon, which need not answer

	// Firecracker and Jailer are Firecracker's programs, which need not be there.
	Firecracker, Jailer string

	Quick bool // leave out the contract and the posture, which start sandboxes
	Now   func() time.Time

	// Programs unpacks the programs that enclave brings along into bin, verifies
	// them and returns their paths.
	Programs func(bin string) (runsc, guest string, err error)

	// Machine says how the machines of a backend are run, as far as that does not
	// depend on the state directory.
	Machine func(backend string) (microvm.Config, error)

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
	Sandboxes  string // an empty directory
	Programs   string // another
	Instance   string // marks the sandboxes
	Containers string // an empty directory for those of Docker
	Machines   string // another, for virtual machines
}

func (c Config) validate() error {
	for name, missing := range map[string]bool{
		"state directory": c.State == "", "backend": len(c.Backends) == 0, "clock": c.Now == nil,
		"programs": c.Programs == nil, "scratch directory": c.Scratch == nil, "gateway": c.Gateway == nil,
		"table": c.Table == nil, "holder": c.Holder == nil, "dialer": c.Dial == nil, "images": c.Images == nil, "machine": c.Machine == nil,
		"gateway user": c.GatewayUser == 0, "count of sessions": c.AtOnce == nil,
	} {
		if missing {
			return errors.New("doctor: no " + name)
		}
	}
	for _, b := range c.Backends {
		if !slices.Contains([]string{gvisorBackend, dockerBackend, qemuBackend, firecrackerBackend, simulatorBackend}, b) {
			return fmt.Errorf("doctor: no backend is called %q", b)
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
