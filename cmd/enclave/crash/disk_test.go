package crash

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/testenv"
)

// mountState gives the site a file system of its own for its state directory,
// with these options (tmpfs(5)).
func (s *site) mountState(options string) {
	s.t.Helper()
	testenv.Need(s.t, "mount")
	dir := s.t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		s.t.Fatalf("mount a tmpfs: %v", err)
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
	s.mountState("size=128m")
	v, _, id := s.running(j)
	// Another process takes all that is left, against which nothing was reserved.
	filler, err := os.Create(filepath.Join(filepath.Dir(s.state), "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer filler.Close()
	for piece := make([]byte, 4096); err == nil; {
		_, err = filler.Write(piece)
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
	// A new session is refused, which writes nothing; the end of one can't be kept.
	var refused *enclave.Error
	if _, err := v.client.Run(t.Context(), request(quick, "")); !errors.As(err, &refused) || refused.Code != "storage_full" {
		t.Errorf("on a full disk the client is told %v", err)
	}
	_, _ = v.client.Teardown(t.Context(), id)
	v.ends("enclave: the control plane can't go on", "did not take a write", "start the server again")
	// A start on the full disk does what it can, or says what is wrong.
	if again := s.start(""); again.serves() {
		again.kill()
	} else if !strings.Contains("\n"+again.words(), "\nenclave: ") {
		t.Errorf("on a full disk a start says %s", again.words())
	}
	if err := unix.Mount("", filepath.Dir(s.state), "tmpfs", unix.MS_REMOUNT, "size=256m"); err != nil {
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
		"removed":  func(s *site) error { return removeUnder(s.state) },
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

// One organisation, then many together, ask for more than the disk has: each is
// refused before the store could fail, and the server serves the others.
func TestNoOrganisationFillsTheDisk(t *testing.T) {
	t.Parallel()
	s, j := newSite(t, "simulator"), newJournal()
	s.mountState("size=200m")
	v, d, _ := s.running(j)
	big := request(quick, "")
	big.Code += "# " + strings.Repeat("x", 10<<20-len(big.Code)-10) + "\n"
	// fill asks for n sessions as org, which has been refused the last of them.
	fill := func(org string, n int) (made int) {
		t.Helper()
		key, err := v.client.CreateKey(t.Context(), enclave.KeyRequest{OrgID: org, User: "eve", Role: "developer"})
		if err != nil {
			t.Fatal(err)
		}
		own := &enclave.Client{Socket: v.client.Socket, APIKey: key.Plaintext}
		last := error(nil)
		for range n {
			var h *enclave.Handle
			if h, last = own.Run(t.Context(), big); last == nil {
				made++
				if _, err := h.Result(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
		}
		var refused *enclave.Error
		if !errors.As(last, &refused) || refused.Code != "quota_exceeded" && refused.Code != "storage_full" {
			t.Errorf("%s is told %v", org, last)
		}
		return made
	}
	if n := fill("greedy", 15); n == 0 || n > 3 {
		t.Errorf("%d requests of 13 MiB were taken, of a storage of 50 MiB", n)
	}
	d.follow(d.run(quick, ""), toEnd)
	for i := range 8 {
		fill(fmt.Sprint("greedy", i), 4)
	}
	if len(j.refused) > 0 {
		t.Errorf("the first organisation is refused: %q", j.refused)
	}
	select {
	case <-v.ended:
		t.Fatalf("the server has ended: %s", v.words())
	default:
	}
	v.stop()
}
