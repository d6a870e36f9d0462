package control

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/docker"
	"github.com/enclave-run/enclave/internal/backend/gvisor"
	"github.com/enclave-run/enclave/internal/backend/microvm"
	"github.com/enclave-run/enclave/internal/backend/microvm/qemu/qemutest"
	"github.com/enclave-run/enclave/internal/egress"
	"github.com/enclave-run/enclave/internal/gateway"
	"github.com/enclave-run/enclave/internal/image"
	"github.com/enclave-run/enclave/internal/testenv"
)

// TestMain is the monitor of QEMU's machines too.
func TestMain(m *testing.M) {
	qemutest.Main()
	os.Exit(m.Run())
}

// source is a host of the tests' own: it resolves to an address for
// documentation (RFC 5737), and the dialer leads there and nowhere else.
const source = "source.example.com"

var sourceAddr = netip.MustParseAddr("192.0.2.1")

// A tap is that host: on each connection it sends zeros without end.
type tap struct{ addr string }

func newTap(t *testing.T) tap {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				for b := make([]byte, 64<<10); err == nil; {
					_, err = conn.Write(b)
				}
			}()
		}
	}()
	return tap{l.Addr().String()}
}

func (tap) LookupNetIP(_ context.Context, network, host string, _ func(sent, received int) error) ([]netip.Addr, error) {
	if strings.TrimSuffix(host, ".") != source || network == "ip6" {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	return []netip.Addr{sourceAddr}, nil
}

func (s tap) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if !strings.HasPrefix(address, sourceAddr.String()+":") {
		return nil, fmt.Errorf("dialled %s, which no test allows", address)
	}
	var d net.Dialer
	return d.DialContext(ctx, network, s.addr)
}

// A kernel is a real backend of this host.
type kernel struct {
	name string
	open func(t *testing.T, images *image.Store) closer
}

type closer interface {
	backend.Backend
	Close() error
}

// kernels are the backends on which every case below has one verdict: the same
// outcome, the same events in the same order, with the same data but for what
// internal/parity declares.
var kernels = []kernel{
	{"gvisor", func(t *testing.T, images *image.Store) closer {
		bin := testenv.Binaries(t)
		b, err := gvisor.New(gvisor.Config{Dir: t.TempDir(), Instance: "control", Runsc: bin.Runsc, Guest: bin.Guest, Rootfs: images.Rootfs})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}},
	{"docker", func(t *testing.T, images *image.Store) closer {
		b, err := docker.New(docker.Config{Dir: t.TempDir(), Instance: "control", Host: testenv.Docker(t), Guest: testenv.Binaries(t).Guest, Images: images})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}},
	{"qemu", func(t *testing.T, images *image.Store) closer {
		return machines(t, images, microvm.Config{QEMU: &microvm.QEMU{Shim: qemutest.Shim()}})
	}},
	{"firecracker", func(t *testing.T, images *image.Store) closer {
		fc, jailer := testenv.Firecracker(t)
		return machines(t, images, microvm.Config{Firecracker: &microvm.Firecracker{Path: fc, Jailer: jailer}})
	}},
}

// machines opens a backend of virtual machines.
func machines(t *testing.T, images *image.Store, c microvm.Config) closer {
	c.Dir, c.Instance, c.Guest, c.Disk, c.Now = t.TempDir(), "control", testenv.Binaries(t).Guest, images.Disk, time.Now
	c.Kernels = testenv.Kernels(t)
	b, err := microvm.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// onKernel returns a plane on a real backend of this host.
func onKernel(t *testing.T, on kernel) (*Plane, *lab) {
	t.Helper()
	testenv.Need(t, on.name)
	images, digest := testenv.Image(t)
	b := on.open(t, images)
	table, err := egress.Standard()
	if err != nil {
		t.Fatal(err)
	}
	table = table.Opened(netip.PrefixFrom(sourceAddr, 32))
	s := newTap(t)
	g, err := gateway.New(gateway.Config{Resolver: s, Dialer: s, Table: table})
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{t: t, path: filepath.Join(t.TempDir(), "store.db"), backend: b, gateway: g}
	c := l.config(table)
	c.Image = func(context.Context) (string, error) { return digest, nil }
	l.open(c)
	t.Cleanup(func() {
		l.close()
		left, err := b.List(context.WithoutCancel(t.Context()))
		if err != nil || len(left) > 0 {
			t.Errorf("sandboxes %v are left, error %v", left, err)
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return l.plane, l
}
