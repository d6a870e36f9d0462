package cgroup

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/enclave-run/enclave/internal/testenv"
)

// real makes a group of this host.
func real(t *testing.T, l Limits) *Group {
	t.Helper()
	testenv.Need(t, "root")
	tree, err := Host()
	if err != nil {
		t.Skip(err)
	}
	parent := fmt.Sprintf("enclave-test-%d", os.Getpid())
	g, err := tree.Group(parent, "g")
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Make(l); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := g.Kill(ctx); err != nil {
			t.Error(err)
		}
		if err := g.Remove(); err != nil {
			t.Error(err)
		}
		if err := g.Remove(); err != nil {
			t.Errorf("remove again: %v", err)
		}
		tree.RemoveParent(parent)
		for _, d := range g.Dirs() {
			if _, err := os.Stat(filepath.Dir(d)); !os.IsNotExist(err) {
				t.Errorf("%s is left: %v", filepath.Dir(d), err)
			}
		}
	})
	return g
}

// shell runs a script whose shell is born in the group, and returns when it has
// said something.
func shell(t *testing.T, g *Group, script string) *exec.Cmd {
	t.Helper()
	join := ""
	for _, d := range g.Dirs() {
		join += "echo 0 > " + filepath.Join(d, "cgroup.procs") + " || exit 9; "
	}
	cmd := exec.Command("/bin/sh", "-c", join+"echo in; "+script)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	return cmd
}

func TestKillLeavesNobodyOfAForkingGroup(t *testing.T) {
	g := real(t, Limits{Memory: 256 << 20, Pids: 200})
	cmd := shell(t, g, "while :; do sh -c 'sleep 100 & sleep 100' & done 2>/dev/null")
	outside := exec.Command("sleep", "100")
	if err := outside.Start(); err != nil {
		t.Fatal(err)
	}
	defer outside.Process.Kill()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := g.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	if pids, err := g.Procs(); err != nil || len(pids) > 0 {
		t.Errorf("left: %v, %v", pids, err)
	}
	if err := outside.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("a process outside the group was killed: %v", err)
	}
}

func TestTheHostsCountersCount(t *testing.T) {
	g := real(t, Limits{Memory: 32 << 20, Pids: 20})
	cmd := shell(t, g, "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; for i in $(seq 40); do sleep 100 & done 2>/dev/null")
	if pids, err := g.Procs(); err != nil || !slices.Contains(pids, cmd.Process.Pid) {
		t.Errorf("Procs: %v, %v", pids, err)
	}
	cmd.Process.Wait()
	if n, err := g.ForksRefused(); err != nil || n == 0 {
		t.Errorf("forks refused: %d, %v", n, err)
	}
	if d, err := g.CPU(); err != nil || d <= 0 {
		t.Errorf("CPU: %v, %v", d, err)
	}
	if n, err := g.PeakMemory(); err != nil || n <= 0 || n > 32<<20 {
		t.Errorf("peak memory: %d, %v", n, err)
	}
	if n, err := g.OOMKills(); err != nil || n != 0 {
		t.Errorf("OOM kills before any: %d, %v", n, err)
	}
	if err := g.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	cmd = shell(t, g, "x=xxxxxxxx; while :; do x=$x$x; done")
	cmd.Wait()
	if n, err := g.OOMKills(); err != nil || n == 0 {
		t.Errorf("OOM kills: %d, %v", n, err)
	}
}
