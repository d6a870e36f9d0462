package crash

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave"
)

// mountState gives the site a file system of its own for its state directory,
// with these options (tmpfs(5)).
func (s *site) mountState(options string) {
	s.t.Helper()
	dir := s.t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		s.t.Skipf("mount a tmpfs: %v", err)
	}
	s.t.Cleanup(func() {
		// What has it open ends first: the site is removed before.
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			s.t.Error(err)
		}
	})
	s.state = filepath.Join(dir, "state")
}

// ends waits until a server that can't go on has ended, with an error and words.
func (v *server) ends(words ...string) {
	v.site.t.Helper()
	select {
	case <-v.ended:
	case <-time.After(patience):
		v.kill()
		v.site.t.Fatalf("the server goes on: %s", v.words())
	}
	if v.err == nil || v.killed() {
		v.site.t.Errorf("the server ended with %v", v.err)
	}
	for _, w := range words {
		if !strings.Contains(v.words(), w) {
			v.site.t.Errorf("the server does not say %q: %s", w, v.words())
		}
	}
}

func TestAFullDiskLosesNothingThatWasAcknowledged(t *testing.T) {
	t.Parallel()
	s, j := newSite(t, "simulator"), newJournal()
	s.mountState("size=3m")
	v, d, _ := s.running(j)
	// Sessions fill the disk until one is refused.
	big := request(quick, "")
	big.Code += "# " + strings.Repeat("x", 200<<10) + "\n"
	for {
		h, err := v.client.Run(t.Context(), big)
		if err == nil {
			j.session(h.Session(), "")
			d.look(h.ID())
			continue
		}
		// Another write may have been the first that failed: then the server is gone.
		var refused *enclave.Error
		if errors.As(err, &refused) && !errors.Is(err, enclave.ErrStorage) && !errors.Is(err, enclave.ErrUnavailable) {
			t.Errorf("on a full disk the client is told %q (%d)", refused.Code, refused.Status)
		}
		break
	}
	v.ends("enclave: the control plane can't go on", "did not take a write", "start the server again")
	// A start on the full disk does what it can, or says what is wrong.
	if again := s.start(""); again.serves() {
		again.kill()
	} else if !strings.Contains("\n"+again.words(), "\nenclave: ") {
		t.Errorf("on a full disk a start says %s", again.words())
	}
	if err := unix.Mount("", filepath.Dir(s.state), "tmpfs", unix.MS_REMOUNT, "size=64m"); err != nil {
		t.Fatal(err)
	}
	s.recovers(j)
}

func TestAReadOnlyStateDirectoryIsSaid(t *testing.T) {
	t.Parallel()
	s := newSite(t, "simulator")
	s.mountState("size=3m")
	if err := unix.Mount("", filepath.Dir(s.state), "tmpfs", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	s.start("").ends("enclave: state directory", "is not writable", "--state")
}

func TestAServerWhoseStateDirectoryVanishesEnds(t *testing.T) {
	t.Parallel()
	for what, vanish := range map[string]func(*site) error{
		"removed":  func(s *site) error { return os.RemoveAll(s.state) },
		"moved":    func(s *site) error { return os.Rename(s.state, s.state+"-away") },
		"replaced": func(s *site) error { return os.Rename(filepath.Join(s.state, "db"), filepath.Join(s.state, "db-away")) },
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, "simulator")
			v, _, _ := s.running(newJournal())
			if err := vanish(s); err != nil {
				t.Fatal(err)
			}
			v.ends("enclave: the control plane can't go on", "is gone from under this server", s.state)
			if left := s.processes(); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

func TestASecondServerIsRefusedAndDisturbsNothing(t *testing.T) {
	t.Parallel()
	s, j := newSite(t, "gvisor"), newJournal()
	v, d, id := s.running(j)
	s.start("").ends("enclave: state directory", "is in use by process", "--state")
	if now, ok := d.look(id); !ok || now.Phase != enclave.Running {
		t.Errorf("the session is %s/%s: %q", now.Phase, now.KillReason, j.refused)
	}
	d.tearDown(id)
	v.stop()
	s.wantGone()
	s.verify(j)
}
