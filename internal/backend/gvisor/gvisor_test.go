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
	"testing"
	"time"

	"github.com/enclave-run/enclave/internal/backend"
)

var programs struct{ runsc, guest, rootfs string }

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "enclave-gvisor-*")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		if err := prepare(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

// prepare builds the guest of these tests and a root file system that has only
// the mount points.
func prepare(dir string) error {
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	programs.guest = filepath.Join(dir, "guest")
	programs.runsc = "/tmp/gve/enclave-runsc2"
	programs.rootfs = filepath.Join(dir, "rootfs")
	for _, d := range []string{"work", "tmp", "run/enclave", ".enclave", "proc", "sys", "dev", "etc"} {
		if err := os.MkdirAll(filepath.Join(programs.rootfs, d), 0o755); err != nil {
			return err
		}
	}
	cmd := exec.Command("go", "build", "-o", programs.guest, "./testdata/guest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the guest: %w\n%s", err, out)
	}
	return nil
}

func config(t testing.TB, dir string) Config {
	return Config{Dir: dir, Instance: "test", Runsc: programs.runsc, Guest: programs.guest,
		Rootfs: func(digest string) (string, error) {
			if digest != "sha256:test" {
				return "", errors.New("no such image")
			}
			return programs.rootfs, nil
		}}
}

func open(t testing.TB, dir string) *Backend {
	t.Helper()
	b, err := New(config(t, dir))
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
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
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
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := b.Destroy(ctx, id); err != nil {
			t.Error(err)
		}
	})
	if err := b.Start(deadline(t), id, spec(l)); err != nil {
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
	x.l.(*net.UnixListener).SetDeadline(time.Now().Add(20 * time.Second))
	conn, err := x.l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := json.NewEncoder(conn).Encode(o); err != nil {
		t.Fatal(err)
	}
	return conn
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

func TestShow(t *testing.T) {
	b := open(t, t.TempDir())
	for i := 0; i < 5; i++ {
		t0 := time.Now()
		x := start(t, b, limits())
		t1 := time.Now()
		out := x.output(t, "self", "show")
		if i == 4 {
			t.Log(out)
		}
		t2 := time.Now()
		code := 7
		x.send(t, order{Exit: &code})
		t.Logf("%+v", x.wait(t))
		t3 := time.Now()
		if err := b.Destroy(deadline(t), x.id); err != nil {
			t.Error(err)
		}
		t.Log(t1.Sub(t0), t2.Sub(t1), t3.Sub(t2), time.Since(t3))
	}
}
