package docker

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/testenv"
)

// A daemon that dies takes its sandboxes with it, and nothing of them is left
// once it is back.
func TestASandboxEndsWithItsDaemonAndLeavesNothing(t *testing.T) {
	daemon := testenv.DockerApart(t)
	b := open(t, config(t, daemon.Host))
	id := newID()
	x := start(t, b, id)
	s, err := b.Sandbox(id)
	if err != nil {
		t.Fatal(err)
	}
	daemon.Kill()
	e, err := b.Wait(deadline(t), id)
	if err != nil || e.Cause != backend.Unknown || !strings.Contains(e.Evidence, "daemon") {
		t.Fatalf("it ended with %+v, %v", e, err)
	}
	if e.Usage.CPU <= 0 || e.Usage.PeakMemory <= 0 {
		t.Errorf("its usage was not measured: %+v", e.Usage)
	}
	if _, err := x.guest.Hello(deadline(t)); err == nil {
		t.Error("it goes on without its daemon")
	}
	// Nobody can say what there is, or remove it.
	if ids, err := b.List(deadline(t)); err == nil {
		t.Errorf("without a daemon List says %v", ids)
	}
	if err := b.Destroy(deadline(t), id); err == nil {
		t.Error("without a daemon the container is said to be gone")
	}
	daemon.Start()
	if err := b.Destroy(deadline(t), id); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, daemon.Host, b, s)
	// And the next one runs.
	start(t, b, newID())
}

// A daemon that hangs keeps the end of a sandbox from nobody, and says nothing
// of what there is.
func TestASandboxEndsThoughItsDaemonHangs(t *testing.T) {
	daemon := testenv.DockerApart(t)
	b := open(t, config(t, daemon.Host))
	x := start(t, b, newID())
	s, err := b.Sandbox(x.id)
	if err != nil {
		t.Fatal(err)
	}
	resume := daemon.Stop()
	if err := s.Group.KillTree(deadline(t)); err != nil {
		t.Fatal(err)
	}
	e, err := b.Wait(deadline(t), x.id)
	if err != nil || e.Cause != backend.Unknown || e.Evidence != errSilent.Error() || e.Usage.CPU <= 0 {
		t.Errorf("it ended with %+v, %v", e, err)
	}
	if ids, err := b.List(deadline(t)); err == nil {
		t.Errorf("while its daemon hangs List says %v", ids)
	}
	if err := b.Destroy(deadline(t), x.id); err == nil {
		t.Error("while its daemon hangs the container is said to be gone")
	}
	resume()
	if err := b.Destroy(deadline(t), x.id); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, daemon.Host, b, s)
}

func TestADaemonsSocketThatOthersCanPlaceIsRefused(t *testing.T) {
	testenv.Need(t, "root")
	theirs, sticky := t.TempDir(), t.TempDir()
	if err := errors.Join(os.Chown(theirs, 1000, 1000), os.Chmod(sticky, 0o777|os.ModeSticky)); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{theirs, sticky} {
		path := filepath.Join(dir, "docker.sock")
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		if err := os.Chown(path, 1000, 1000); err != nil {
			t.Fatal(err)
		}
		if _, err := Dial(t.Context(), "unix://"+path); !errors.Is(err, backend.ErrUnavailable) || !strings.Contains(err.Error(), "can't be trusted") {
			t.Errorf("a daemon at %s: %v", path, err)
		}
	}
}
