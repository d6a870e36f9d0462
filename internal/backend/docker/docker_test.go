package docker

import (
	"context"
	"crypto/rand"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/client"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/local"
	"github.com/enclave-run/enclave/internal/backend/local/cgroup"
	"github.com/enclave-run/enclave/internal/sandbox"
	"github.com/enclave-run/enclave/internal/testenv"
	"github.com/enclave-run/enclave/internal/wire"
)

func limits() backend.Limits {
	return backend.Limits{MilliCPU: 1000, CPU: time.Minute, Memory: 256 << 20, Pids: 64, Disk: 64 << 20}
}

func newID() backend.ID {
	return backend.ID(strings.ToLower(rand.Text()[:20]))
}

func config(t *testing.T, host string) Config {
	t.Helper()
	store, _ := testenv.Image(t)
	return Config{Dir: t.TempDir(), Instance: "test", Host: host, Guest: testenv.Binaries(t).Guest, Images: store}
}

func open(t *testing.T, c Config) *Backend {
	t.Helper()
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

// deadline bounds what must end, far above what it takes.
func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// A box is a sandbox that has said hello.
type box struct {
	id      backend.ID
	packets net.Conn
	guest   *wire.Client
	hello   wire.Hello
}

// start starts a sandbox, which t destroys unless it is gone.
func start(t *testing.T, b *Backend, id backend.ID) box {
	t.Helper()
	return startWith(t, b, id, limits())
}

func startWith(t *testing.T, b *Backend, id backend.ID, limits backend.Limits) box {
	t.Helper()
	_, digest := testenv.Image(t)
	t.Cleanup(func() {
		if _, err := b.Sandbox(id); err != nil {
			return // it was not made, or b is closed and its successor has the sandbox
		}
		if err := b.Destroy(deadline(t), id); err != nil {
			t.Error(err)
		}
	})
	opened, err := sandbox.Open(deadline(t), b, id, backend.Spec{Image: digest, Limits: limits})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(opened.Close)
	x := box{id: id, packets: opened.Packets, guest: opened.Guest}
	if x.hello, err = x.guest.Hello(deadline(t)); err != nil {
		t.Fatal(err)
	}
	if err := b.Begin(deadline(t), id); err != nil {
		t.Fatal(err)
	}
	return x
}

func TestAHostWithoutADaemonIsToldInWords(t *testing.T) {
	testenv.Need(t, "docker")
	for host, want := range map[string]string{
		"unix://" + filepath.Join(t.TempDir(), "none.sock"): "no Docker daemon answers at unix:///",
		"tcp://127.0.0.1:2375":                              "is not a socket of this host",
		"unix://relative":                                   "is not a socket of this host",
	} {
		_, err := New(config(t, host))
		if !errors.Is(err, backend.ErrUnavailable) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", host, err)
		}
	}
}

func TestADaemonThatCantConfineOrCountIsRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		os, cgroups string
		security    []string
		want        string // "" is accepted
	}{
		"an older daemon":        {"linux", "cgroupfs", []string{"name=seccomp,profile=default"}, ""},
		"a newer daemon":         {"linux", "cgroupfs", []string{"name=apparmor", "name=seccomp,profile=builtin", "name=cgroupns"}, ""},
		"no filter":              {"linux", "cgroupfs", nil, "system calls"},
		"a filter switched off":  {"linux", "cgroupfs", []string{"name=seccomp,profile=unconfined"}, "system calls"},
		"a filter of one's own":  {"linux", "cgroupfs", []string{"name=seccomp,profile=/etc/loose.json"}, "system calls"},
		"groups that go":         {"linux", "systemd", []string{"name=seccomp,profile=default"}, "cgroupfs"},
		"rootless":               {"linux", "cgroupfs", []string{"name=seccomp,profile=default", "name=rootless"}, "rootless"},
		"users that are others":  {"linux", "cgroupfs", []string{"name=seccomp,profile=default", "name=userns"}, "remaps"},
		"another kind of kernel": {"windows", "cgroupfs", []string{"name=seccomp,profile=default"}, "windows"},
	} {
		err := suits(tc.os, tc.cgroups, tc.security)
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAHostWithoutATUNDeviceIsToldInWords(t *testing.T) {
	dir := t.TempDir()
	for device, want := range map[string]string{filepath.Join(dir, "tun"): "modprobe tun", dir: "is not a device", os.DevNull: ""} {
		err := tunnels(device)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v", device, err)
		}
	}
}

func TestAnImageThatTheDaemonLostIsLoadedAgain(t *testing.T) {
	host := testenv.Docker(t)
	b := open(t, config(t, host))
	store, digest := testenv.Image(t)
	d, err := store.Docker(deadline(t), digest)
	if err != nil {
		t.Fatal(err)
	}
	x := start(t, b, newID())
	if err := b.Destroy(deadline(t), x.id); err != nil {
		t.Fatal(err)
	}
	if _, err := daemon(t, host).ImageRemove(deadline(t), d.Name, client.ImageRemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	start(t, b, newID())
}

func TestAForeignContainerIsNeitherListedNorRemoved(t *testing.T) {
	host := testenv.Docker(t)
	b, other := open(t, config(t, host)), open(t, config(t, host))
	id := newID()
	x := start(t, other, id)
	if ids, err := b.List(deadline(t)); err != nil || len(ids) != 0 {
		t.Errorf("another directory's sandboxes are listed: %v, %v", ids, err)
	}
	if err := b.Destroy(deadline(t), id); err != nil {
		t.Error(err)
	}
	if _, err := x.guest.Hello(deadline(t)); err != nil {
		t.Errorf("another directory's sandbox was destroyed: %v", err)
	}
}

func TestAStartThatWasCutShortLeavesNothing(t *testing.T) {
	host := testenv.Docker(t)
	c := config(t, host)
	b := open(t, c)
	x := start(t, b, newID())
	s, err := b.Sandbox(x.id)
	if err != nil {
		t.Fatal(err)
	}
	// As far as a start comes before it says that the sandbox runs.
	if err := errors.Join(b.Close(), os.Remove(s.Path(local.StartedFile))); err != nil {
		t.Fatal(err)
	}
	again := open(t, c)
	if e, err := again.Wait(deadline(t), x.id); err != nil || e.Cause != backend.Unknown {
		t.Errorf("Wait: %+v, %v", e, err)
	}
	if err := again.Destroy(deadline(t), x.id); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, host, again, s)
}

// daemon is a connection to the daemon at host.
func daemon(t *testing.T, host string) *client.Client {
	t.Helper()
	api, err := Dial(deadline(t), host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { api.Close() })
	return api
}

// nothingLeft reports what is left of a sandbox on the host and in the daemon.
func nothingLeft(t *testing.T, host string, b *Backend, s *local.Sandbox) {
	t.Helper()
	if ids, err := b.List(deadline(t)); err != nil || len(ids) > 0 {
		t.Errorf("listed: %v, %v", ids, err)
	}
	if there, err := s.Group.Exists(); err != nil || there {
		t.Errorf("the cgroup is there: %t, %v", there, err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), s.Dir) {
		t.Errorf("something is mounted in %s (%v)", s.Dir, err)
	}
	if _, err := os.Lstat(s.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its directory is there: %v", err)
	}
	all, err := daemon(t, host).ContainerList(deadline(t), client.ContainerListOptions{All: true, Filters: make(client.Filters).Add("label", sandboxLabel+"="+string(s.ID))})
	if err != nil || len(all.Items) > 0 {
		t.Errorf("containers %v, %v", all.Items, err)
	}
}

// confined is what stands between a daemon that does other than it was told and
// a sandbox that trusts it.
func TestAContainerThatIsMountedOtherwiseIsRefused(t *testing.T) {
	testenv.Need(t, "root")
	if err := confined(os.Getpid()); err == nil {
		t.Error("the mounts of this process are taken for a sandbox's")
	}
}

// A container that its daemon makes in control groups of its own would never reach
// a limit.
func TestAContainerThatIsCountedElsewhereIsRefused(t *testing.T) {
	testenv.Need(t, "root")
	tree, err := cgroup.Host()
	if err != nil {
		t.Fatal(err)
	}
	g, err := tree.Group(cgroupParent, "nobody-"+string(newID()))
	if err != nil {
		t.Fatal(err)
	}
	if err := counted(g, "container", os.Getpid()); err == nil || !strings.Contains(err.Error(), "outside of") {
		t.Errorf("this process is taken for a sandbox's: %v", err)
	}
}
