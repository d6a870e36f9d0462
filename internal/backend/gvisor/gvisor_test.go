package gvisor

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/testenv"
)

// scratch is where the guest and the image of these tests are, for the time of
// the process.
var scratch string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		var err error
		if scratch, err = os.MkdirTemp("", "enclave-gvisor-*"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(scratch)
		return m.Run()
	}())
}

// prepare builds the guest of these tests and makes a root file system that has
// only the mount points.
var prepare = sync.OnceValue(func() error {
	for _, d := range []string{"work", "tmp", "run/enclave", ".enclave", "proc", "sys", "dev", "etc"} {
		if err := os.MkdirAll(filepath.Join(scratch, "rootfs", d), 0o755); err != nil {
			return err
		}
	}
	cmd := exec.Command("go", "build", "-o", filepath.Join(scratch, "guest"), "./testdata/guest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the guest: %w\n%s", err, out)
	}
	return nil
})

func config(t testing.TB, dir string) Config {
	t.Helper()
	testenv.Need(t, "gvisor")
	if err := prepare(); err != nil {
		t.Fatal(err)
	}
	return Config{Dir: dir, Instance: "test", Runsc: testenv.Binaries(t).Runsc, Guest: filepath.Join(scratch, "guest"),
		Rootfs: func(digest string) (string, error) {
			if digest != "sha256:test" {
				return "", errors.New("no such image")
			}
			return filepath.Join(scratch, "rootfs"), nil
		}}
}

func open(t testing.TB, dir string, but ...func(*Config)) *Backend {
	t.Helper()
	c := config(t, dir)
	for _, change := range but {
		change(&c)
	}
	b, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func newID() backend.ID {
	return backend.ID(fmt.Sprintf("%020x", rand.Text())[:20])
}

func limits() backend.Limits {
	return backend.Limits{MilliCPU: 2000, CPU: time.Minute, Memory: 256 << 20, Pids: 64, Disk: 64 << 20}
}

func spec(l backend.Limits) backend.Spec { return backend.Spec{Image: "sha256:test", Limits: l} }

// deadline is long enough for the slowest of hosts, and ends what hangs.
func deadline(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// A box is a started sandbox and its way to the test.
type box struct {
	*Backend
	id backend.ID
	l  net.Listener
}

func start(t testing.TB, b *Backend, l backend.Limits) box {
	t.Helper()
	id := newID()
	ln, err := b.Listen(deadline(t), id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ln.Close()
		if _, err := b.Sandbox(id); err != nil {
			return // its successor has the sandbox
		}
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := b.Destroy(ctx, id); err != nil {
			t.Error(err)
		}
	})
	if err := b.Start(deadline(t), id, spec(l)); err != nil {
		t.Fatal(err)
	}
	if err := b.Begin(deadline(t), id); err != nil {
		t.Fatal(err)
	}
	return box{b, id, ln}
}

type order struct {
	Argv []string
	Root bool
	Exit *int
}

// send gives the guest an order and returns the connection with its output.
func (x box) send(t testing.TB, o order) net.Conn {
	t.Helper()
	conn := x.accept(t)
	send(t, conn, o)
	return conn
}

// accept takes a connection on which the guest waits for an order.
func (x box) accept(t testing.TB) net.Conn {
	t.Helper()
	x.l.(*net.UnixListener).SetDeadline(time.Now().Add(20 * time.Second))
	conn, err := x.l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func send(t testing.TB, conn net.Conn, o order) {
	t.Helper()
	if err := json.NewEncoder(conn).Encode(o); err != nil {
		t.Fatal(err)
	}
}

// output runs a workload to its end.
func (x box) output(t testing.TB, argv ...string) string {
	t.Helper()
	out, err := io.ReadAll(x.send(t, order{Argv: argv}))
	if err != nil && !errors.Is(err, net.ErrClosed) {
		t.Logf("the workload's output ended with: %v", err)
	}
	return string(out)
}

func (x box) wait(t testing.TB) backend.Exit {
	t.Helper()
	e, err := x.Wait(deadline(t), x.id)
	if err != nil {
		t.Fatal(err)
	}
	return e
}
