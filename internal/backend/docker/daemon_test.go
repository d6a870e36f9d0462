package docker

import (
	"errors"
	"net"
	"os"
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
	// A daemon that would be believed: what is refused is refused for its place alone.
	root := func(string) error { return nil }
	for name, tc := range map[string]struct {
		at    string // from the directory that has a directory in, where the socket is
		spoil func(dir string) error
		want  string
	}{
		"root's":                              {"in/sock", root, "no Docker daemon answers"},
		"root's, behind a link of root's":     {"link", root, "no Docker daemon answers"},
		"root's, for a group":                 {"in/sock", func(d string) error { return os.Chmod(d+"/in/sock", 0o660) }, "no Docker daemon answers"},
		"none":                                {"in/none", root, "no Docker daemon answers"},
		"none, behind a link to nowhere":      {"dangling", root, "no Docker daemon answers"},
		"another's":                           {"in/sock", func(d string) error { return os.Chown(d+"/in/sock", 1000, 1000) }, "belongs to user 1000"},
		"in another's directory":              {"in/sock", func(d string) error { return os.Chown(d+"/in", 1000, 1000) }, "belongs to user 1000"},
		"in another's, behind root's link":    {"link", func(d string) error { return os.Chown(d+"/in", 1000, 1000) }, "belongs to user 1000"},
		"behind another's link":               {"link", func(d string) error { return os.Lchown(d+"/link", 1000, 1000) }, "belongs to user 1000"},
		"where all can exchange it":           {"in/sock", func(d string) error { return os.Chmod(d+"/in", 0o777) }, "can be changed by others"},
		"where all can, once the daemon ends": {"in/sock", func(d string) error { return os.Chmod(d+"/in", 0o777|os.ModeSticky) }, "make one of their own"},
		"no socket":                           {"in/file", func(d string) error { return os.WriteFile(d+"/in/file", nil, 0o600) }, "is not a socket"},
	} {
		dir := t.TempDir()
		if err := errors.Join(os.Mkdir(dir+"/in", 0o755), os.Symlink("in/sock", dir+"/link"), os.Symlink("in/none", dir+"/dangling")); err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("unix", dir+"/in/sock")
		if err != nil {
			t.Fatal(err)
		}
		connected := make(chan struct{}, 16)
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					close(connected)
					return
				}
				connected <- struct{}{}
				c.Close()
			}
		}()
		if err := tc.spoil(dir); err != nil {
			t.Fatal(err)
		}
		_, err = Dial(t.Context(), "unix://"+dir+"/"+tc.at)
		l.Close()
		if !errors.Is(err, backend.ErrUnavailable) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", name, err)
		}
		asked := 0
		for range connected {
			asked++
		}
		if expected := strings.HasPrefix(name, "root's"); (asked > 0) != expected {
			t.Errorf("%s: it was asked %d times", name, asked)
		}
	}
}
