//go:build linux

package main

import (
	"net"
	"strings"
	"testing"

	"github.com/enclave-run/enclave/internal/wire"
)

// TestMachineCountsItsWorkloads holds what the guest reports to what workloads do,
// each at its wall, and the guest to survive it.
func TestMachineCountsItsWorkloads(t *testing.T) {
	s := walls()
	m := startMachine(t, s)
	if r := m.await(t, "a first report", func(wire.Report) bool { return true }); r.Tasks != 0 || r.ForksRefused != 0 || r.OOMKills != 0 {
		t.Errorf("before any workload: %+v", r)
	}

	t.Run("files are disk and no memory", func(t *testing.T) {
		check(t, outcome{}, m.bash(t, "head -c 40M /dev/zero > /work/a"))
		r := m.await(t, "40 MiB on disk", func(r wire.Report) bool { return r.Tasks == 0 && r.Disk >= 40<<20 })
		if r.Disk > 42<<20 || r.Memory > 8<<20 {
			t.Errorf("%+v", r)
		}
		// /tmp is of the same file system, which has so many bytes and no more.
		got := m.bash(t, "head -c 40M /dev/zero > /tmp/b")
		if got.Code == 0 || !strings.Contains(got.Stderr, "No space left") {
			t.Errorf("%+v", got)
		}
		check(t, outcome{}, m.bash(t, "rm /work/a /tmp/b"))
		m.await(t, "the files gone", func(r wire.Report) bool { return r.Disk < 1<<20 })
	})
	t.Run("what the guest writes is no workload's memory", func(t *testing.T) {
		if err := m.WriteFile(t.Context(), "/work/c", 0o644, strings.NewReader(strings.Repeat("x", 20<<20))); err != nil {
			t.Fatal(err)
		}
		r := m.await(t, "20 MiB on disk", func(r wire.Report) bool { return r.Disk >= 20<<20 })
		if r.Memory > 8<<20 {
			t.Errorf("%+v", r)
		}
		// And hides none.
		p := m.begin(t, "b = bytearray(50 << 20); open('/dev/shm/s', 'wb').write(bytes(20 << 20)); input()")
		m.await(t, "70 MiB of memory", func(r wire.Report) bool { return r.Memory >= 70<<20 && r.Memory < 110<<20 })
		p.end(t)
		check(t, outcome{}, m.bash(t, "rm /work/c /dev/shm/s"))
	})
	t.Run("a look is answered", func(t *testing.T) {
		for seq := uint64(1); seq <= 3; seq++ {
			if err := wire.SendLine(m.boot, wire.Look{Seq: seq}); err != nil {
				t.Fatal(err)
			}
			m.await(t, "the answer", func(r wire.Report) bool { return r.Seq == seq })
		}
	})
	t.Run("tasks are counted", func(t *testing.T) {
		p := m.begin(t, "import threading, time\nfor i in range(20): threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\ninput()")
		m.await(t, "21 tasks", func(r wire.Report) bool { return r.Tasks == 21 })
		// While another starts, the guest is in their group: its threads are not theirs.
		for range 5 {
			check(t, outcome{}, m.bash(t, "true"))
		}
		m.mu.Lock()
		for _, r := range m.reports {
			if r.Tasks > 23 {
				t.Errorf("%d tasks were reported", r.Tasks)
			}
		}
		m.mu.Unlock()
		p.end(t)
		m.await(t, "none left", func(r wire.Report) bool { return r.Tasks == 0 })
	})
	t.Run("a fork bomb meets the wall", func(t *testing.T) {
		p, err := m.Start(t.Context(), wire.StartRequest{Argv: []string{"bash", "-c", "f() { f | f & }; f; sleep 1000"}})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		r := m.await(t, "a fork refused", func(r wire.Report) bool { return r.ForksRefused > 0 })
		if r.Tasks > s.Pids {
			t.Errorf("%d tasks above a wall of %d", r.Tasks, s.Pids)
		}
		// The guest goes on: it ends them all.
		if err := p.Signal(t.Context(), 9); err != nil {
			t.Fatal(err)
		}
		collect(t, p)
		m.await(t, "the bomb's end", func(r wire.Report) bool { return r.Tasks == 0 })
	})
	t.Run("memory above the wall is killed for", func(t *testing.T) {
		got := m.python(t, "b = []\nwhile True: b.append(bytearray(1 << 20))")
		if got.Signal != 9 {
			t.Errorf("%+v", got)
		}
		m.await(t, "a kill", func(r wire.Report) bool { return r.OOMKills > 0 })
	})
	check(t, outcome{Stdout: "alive\n"}, m.bash(t, "echo alive"))
}

// A begun is a program that runs until it is told to end.
type begun struct {
	m *testMachine
	p *wire.Process
}

func (m *testMachine) begin(t *testing.T, code string) begun {
	t.Helper()
	p, err := m.Start(t.Context(), wire.StartRequest{Language: "python", Code: code, Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	return begun{m, p}
}

func (b begun) end(t *testing.T) {
	t.Helper()
	if err := b.p.Input(t.Context(), []byte("\n")); err != nil {
		t.Fatal(err)
	}
	if got := collect(t, b.p); got.Code != 0 {
		t.Errorf("%+v", got)
	}
}

// A machine that no host answers says so on its console, and ends.
func TestMachineWithoutAHostEnds(t *testing.T) {
	m := launchMachine(t, func(boot, _ net.Listener) { boot.Close() })
	<-m.ended
	if said := m.console.String(); !strings.Contains(said, "enclave-guest: open the boot channel") {
		t.Errorf("the console says %q", said)
	}
	if m.code != 0 {
		t.Errorf("QEMU ended with %d", m.code)
	}
}
