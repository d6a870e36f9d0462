package crash

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/mountinfo"
)

// lives are what happens to the sandboxes of a real backend. Each holds on every
// kernel.
var lives = map[string]func(t *testing.T, on kernel){
	"its control plane is killed":                itsControlPlaneIsKilled,
	"its first process is killed":                itsFirstProcessIsKilled,
	"its directory is removed from under it":     itsDirectoryIsRemoved,
	"its host is restarted":                      itsHostIsRestarted,
	"its kernel hangs":                           itsKernelHangs,
	"another installation is killed and removed": anotherInstallationIsRemoved,
	"it is made and torn down, again and again":  itIsMadeAgainAndAgain,
}

// livesOfDaemons are what happens where a daemon makes the sandboxes.
var livesOfDaemons = map[string]func(t *testing.T, on kernel){
	"its daemon hangs, and is killed the next time": itsDaemonHangsAndIsKilled,
}

func TestWhateverHappensToASandboxNothingIsLostOrLeft(t *testing.T) {
	t.Parallel()
	for name, on := range kernels {
		all := maps.Clone(lives)
		if on.daemon {
			maps.Copy(all, livesOfDaemons)
		}
		for what, happens := range all {
			t.Run(name+"/"+what, func(t *testing.T) {
				t.Parallel()
				happens(t, on)
			})
		}
	}
}

// goesOnAfter checks that the server runs a session, ends, and has told the truth.
func (v *server) goesOnAfter(d driver) {
	s := v.site
	s.t.Helper()
	id := d.run(quick, "")
	d.follow(id, toEnd)
	if now, ok := d.look(id); !ok || now.Outcome != enclave.Succeeded {
		s.t.Errorf("the next session ends as %s/%s: %q", now.Outcome, now.KillReason, d.refused)
	}
	s.wantNothing()
	v.stop()
	s.wantGone()
	s.verify(d.journal)
}

// within bounds what clients wait for in one of these tests.
func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 8*patience)
	t.Cleanup(cancel)
	return ctx
}

func itsControlPlaneIsKilled(t *testing.T, on kernel) {
	s, j := newSite(t, on.name), newJournal()
	v, d, _ := s.running(j)
	d.follow(d.run(sleepy, ""), untilRunning)
	before := s.first()
	v.kill()
	if now := s.first(); len(before) != 2 || len(now) != 2 {
		t.Fatalf("of the processes %v of two sandboxes %v outlive the control plane", before, now)
	}
	s.recovers(j)
}

func itsFirstProcessIsKilled(t *testing.T, on kernel) {
	s, j := newSite(t, on.name), newJournal()
	v, d, id := s.running(j)
	s.killFirst()
	s.wantLost(d, id)
	v.goesOnAfter(d)
}

// killFirst kills the first process of each sandbox, of which there must be one.
func (s *site) killFirst() {
	s.t.Helper()
	pids := s.first()
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			s.t.Fatal(err)
		}
	}
	if len(pids) == 0 {
		s.t.Fatal("there is no process to kill")
	}
}

func itsDirectoryIsRemoved(t *testing.T, on kernel) {
	s, j := newSite(t, on.name), newJournal()
	v, d, id := s.running(j)
	pids, dirs := s.first(), s.sandboxes()
	if len(pids) != 1 || len(dirs) != 1 {
		t.Fatalf("processes %v, directories %v", pids, dirs)
	}
	s.unmountBelow(dirs[0])
	if err := removeUnder(dirs[0]); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pids[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s.wantLost(d, id)
	v.goesOnAfter(d)
}

// removeUnder removes a directory from under those who write in it: what comes
// while its entries are removed keeps it, and goes the next time.
func removeUnder(dir string) (err error) {
	for range 100 {
		if err = os.RemoveAll(dir); !errors.Is(err, syscall.ENOTEMPTY) {
			break
		}
	}
	return err
}

// unmountBelow unmounts what is mounted in a directory.
func (s *site) unmountBelow(dir string) {
	s.t.Helper()
	for _, m := range mountsBelow(s.t, dir) {
		if err := unix.Unmount(m, unix.MNT_DETACH); err != nil {
			s.t.Fatal(err)
		}
	}
}

// mountsBelow are the mount points below a directory, the deepest first.
func mountsBelow(t testing.TB, dir string) []string {
	t.Helper()
	table, err := mountinfo.Table()
	if err != nil {
		t.Fatal(err)
	}
	return mountinfo.Below(table, dir)
}

// A reboot leaves the state directory and nothing in the kernel.
func itsHostIsRestarted(t *testing.T, on kernel) {
	s, j := newSiteApart(t, on.name), newJournal()
	v, d, _ := s.running(j)
	done := d.run(quick, "")
	d.follow(done, toEnd)
	d.look(done)
	v.kill()
	if s.daemon != nil {
		s.daemon.Kill()
	}
	var left []int
	if !eventually(patience, func() bool {
		left = s.members()
		for _, p := range s.processes() {
			left = append(left, p.pid)
		}
		for _, pid := range left {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		s.removeGroups()
		return len(left) == 0 && len(s.groups()) == 0
	}) {
		t.Fatalf("what runs can't be removed: processes %v, groups %v", left, s.groups())
	}
	s.unmountBelow(s.dir)
	if s.daemon != nil {
		s.daemon.Start()
	}
	s.recovers(j)
}

func itsKernelHangs(t *testing.T, on kernel) {
	s, j := newSite(t, on.name), newJournal()
	v := s.start("")
	d := driver{j, v.client, within(t)}
	id := d.run(brief, "")
	d.follow(id, untilRunning)
	pids := s.first()
	if len(pids) != 1 {
		t.Fatalf("processes %v of one sandbox", pids)
	}
	if err := syscall.Kill(pids[0], syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	s.wantOverdue(d, id)
	v.goesOnAfter(d)
}

// wantOverdue waits until a brief session has ended, for its time was over.
func (s *site) wantOverdue(d driver, id string) {
	s.t.Helper()
	d.follow(id, toEnd)
	if now, ok := d.look(id); !ok || now.Outcome != enclave.Killed || now.KillReason != "wall_clock_exceeded" {
		s.t.Errorf("the session is %s, %s/%s: %q", now.Phase, now.Outcome, now.KillReason, d.refused)
	}
}

// What is of another installation, or of nobody, is not touched.
func anotherInstallationIsRemoved(t *testing.T, on kernel) {
	mine, other := newSite(t, on.name), newSite(t, on.name)
	v, d, id := mine.running(newJournal())
	w, od, _ := other.running(newJournal())
	survived := on.foreign(other)
	before := mine.first()
	w.kill()
	other.recovers(od.journal)
	if out, err := other.command("", "uninstall", "--yes").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if _, err := os.Lstat(other.state); !os.IsNotExist(err) {
		t.Errorf("the other installation is there: %v", err)
	}
	if now, ok := d.look(id); !ok || now.Phase != enclave.Running || !slices.Equal(mine.first(), before) {
		t.Errorf("the session is %s/%s: %q", now.Phase, now.KillReason, d.refused)
	}
	if err := survived(); err != nil {
		t.Error(err)
	}
	d.tearDown(id)
	v.goesOnAfter(d)
}

// cycles is how often a sandbox is made and torn down.
func (k kernel) cycles() int {
	if full() {
		return 200
	}
	return 8
}

func itIsMadeAgainAndAgain(t *testing.T, on kernel) {
	if on.slow && !full() {
		t.Skip("takes minutes: ENCLAVE_CRASH=full")
	}
	s, j := newSite(t, on.name), newJournal()
	if full() { // a daemon of its own, to count what that keeps
		s = newSiteApart(t, on.name)
	}
	v := s.start("")
	ctx, cancel := context.WithTimeout(t.Context(), 8*patience+time.Duration(on.cycles())*10*time.Second)
	defer cancel()
	d := driver{j, v.client, ctx}
	cycle := func(i int) {
		id := d.run([]string{quick, sleepy, loud, leaky}[i%4], "")
		if i%4 == 1 {
			d.follow(id, untilRunning)
		} else {
			d.follow(id, toEnd)
		}
		d.tearDown(id)
	}
	const warm = 4 // one of each kind: what is made once is made
	for i := range warm {
		cycle(i)
	}
	s.wantNothing()
	before := s.holdings()
	for i := range on.cycles() {
		cycle(i)
	}
	s.wantNothing()
	// Less than one for two cycles is no leak: a connection more is open, or the
	// daemon tidies up.
	grown := ""
	if !eventually(patience, func() bool {
		grown = ""
		for what, n := range s.holdings() {
			if n >= before[what]+on.cycles()/2 {
				grown += fmt.Sprintf("%s: %d, before %d cycles %d; ", what, n, on.cycles(), before[what])
			}
		}
		return grown == ""
	}) {
		t.Error(grown)
	}
	t.Logf("%d cycles: %v, before %v", on.cycles(), s.holdings(), before)
	for _, id := range j.ids() {
		if now, ok := d.look(id); !ok || now.Phase != enclave.TornDown {
			t.Errorf("session %s is %s/%s", id, now.Phase, now.KillReason)
		}
	}
	v.goesOnAfter(d)
}

// holdings counts what the site, and a daemon that it has for itself, have of
// what a sandbox is made of.
func (s *site) holdings() map[string]int {
	s.t.Helper()
	n := map[string]int{"mounts": len(mountsBelow(s.t, s.dir)), "groups": len(s.groups())}
	pids := s.members()
	for _, p := range s.processes() {
		pids = append(pids, p.pid)
	}
	if s.daemon != nil {
		pids = append(pids, s.daemon.Processes()...)
		n["mounts"] += len(mountsBelow(s.t, s.daemon.Dir))
	}
	for _, pid := range pids {
		fds, err := os.ReadDir("/proc/" + strconv.Itoa(pid) + "/fd")
		if err != nil {
			continue // it has just ended
		}
		n["processes"]++
		n["descriptors"] += len(fds)
	}
	err := filepath.WalkDir(s.state, func(path string, d fs.DirEntry, err error) error {
		if d != nil && d.IsDir() && d.Name() == "db" {
			return fs.SkipDir // what it keeps of sessions is meant to stay
		}
		n["files"]++
		if os.IsNotExist(err) {
			return nil
		}
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}

// A daemon that hangs keeps nothing running, and no session from ending; one that
// dies takes its sandboxes with it.
func itsDaemonHangsAndIsKilled(t *testing.T, on kernel) {
	s, j := newSiteApart(t, on.name), newJournal()
	v := s.start("")
	d := driver{j, v.client, within(t)}
	id := d.run(brief, "")
	d.follow(id, untilRunning)
	resume := s.daemon.Stop()
	s.wantOverdue(d, id)
	s.wantNoMembers()
	ctx, cancel := context.WithTimeout(d.ctx, patience)
	defer cancel()
	if h, err := v.client.Health(ctx); ctx.Err() != nil || h.Ready {
		t.Errorf("while the daemon hangs the control plane says %+v, %v", h, err)
	}
	resume()
	s.wantNothing()

	id = d.run(sleepy, "")
	d.follow(id, untilRunning)
	s.daemon.Kill()
	d.follow(id, toEnd)
	if now, ok := d.look(id); !ok || now.Outcome != enclave.Killed || now.KillReason != "backend_lost" {
		t.Errorf("the session is %s, %s/%s: %q", now.Phase, now.Outcome, now.KillReason, j.refused)
	}
	s.wantNoMembers()
	s.daemon.Start()
	s.wantNothing()
	v.goesOnAfter(d)
}

// wantNoMembers waits until no process is in the control groups of the site.
func (s *site) wantNoMembers() {
	s.t.Helper()
	if !eventually(patience, func() bool { return len(s.members()) == 0 }) {
		s.t.Fatalf("processes %v go on", s.members())
	}
}
