package gvisor

import (
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/local"
)

// late has nobody look at a sandbox's counters for a second.
func late(c *Config) { c.Late = time.Second }

// ownBlocks is what the host's file system takes for itself to hold a file.
const ownBlocks = 64 << 10

// onDisk is how many bytes the files of a sandbox take on this host.
func (x box) onDisk(t *testing.T) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(filestore(&local.Sandbox{ID: x.id, Dir: filepath.Join(x.Dir(), "test-"+string(x.id))}), &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

// What a workload can take of the disk is a wall, however late somebody looks: the
// limit and the head room, in both places together.
func TestDiskIsAWallHoweverLateSomebodyLooks(t *testing.T) {
	b := open(t, t.TempDir(), late)
	for name, c := range map[string]struct {
		workloads [][]string
		times     int64 // the wall
	}{
		"one place":                       {[][]string{{"write", "/work/a", "500"}}, 1},
		"two places at once":              {[][]string{{"write", "/work/a", "500"}, {"write", "/tmp/b", "500"}}, 1},
		"two places, one after the other": {[][]string{{"write", "/work/a", "39", "/tmp/b", "500"}}, 1},
		// gVisor's kernel gives removed pages back in the background, and has others
		// meanwhile.
		"what is removed and written anew": {[][]string{{"churn", "/work/a", "39"}, {"churn", "/tmp/b", "19"}, {"write", "/work/d", "33"}}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			l := limits()
			l.Disk = 32 << 20
			x := start(t, b, l)
			for _, w := range c.workloads {
				x.send(t, order{Argv: append([]string{"self"}, w...)})
			}
			ended := make(chan backend.Exit)
			go func() { ended <- x.wait(t) }()
			var e backend.Exit
			var most int64
			for running := true; running; most = max(most, x.onDisk(t)) {
				select {
				case e = <-ended:
					running = false
				default:
					runtime.Gosched()
				}
			}
			if e.Cause != backend.DiskLimit || e.Observed <= l.Disk {
				t.Errorf("the sandbox ended with %+v", e)
			}
			if wall := c.times*walls.DiskAt(l) + ownBlocks; most > wall {
				t.Errorf("%d bytes were there at a time, of at most %d", most, wall)
			}
		})
	}
}

// charged is how far the kernel counts past a limit before it refuses: it charges
// pages in batches.
const charged = 64 << 12

// The same of tasks and memory. A bomb may be found by either: its tasks take
// memory.
func TestTasksAndMemoryAreWallsHoweverLateSomebodyLooks(t *testing.T) {
	b := open(t, t.TempDir(), late)
	for name, c := range map[string]struct {
		workload []string
		causes   []backend.Cause
	}{
		"processes": {[]string{"fork", "3000", "stay"}, []backend.Cause{backend.PidsLimit}},
		"threads":   {[]string{"threads", "3000"}, []backend.Cause{backend.PidsLimit}},
		"memory":    {[]string{"alloc", "4000"}, []backend.Cause{backend.MemoryLimit}},
	} {
		t.Run(name, func(t *testing.T) {
			l := limits()
			x := start(t, b, l)
			s, err := b.Sandbox(x.id)
			if err != nil {
				t.Fatal(err)
			}
			x.send(t, order{Argv: append([]string{"self"}, c.workload...)})
			ended := make(chan backend.Exit)
			go func() { ended <- x.wait(t) }()
			var e backend.Exit
			var tasks, memory int64
			for running := true; running; {
				select {
				case e = <-ended:
					running = false
				default:
					runtime.Gosched()
				}
				if n, err := s.Group.Tasks(); err == nil {
					tasks = max(tasks, n)
				}
				if n, err := s.Group.PeakMemory(); err == nil {
					memory = max(memory, n)
				}
			}
			if !slices.Contains(c.causes, e.Cause) {
				t.Errorf("the sandbox ended with %+v", e)
			}
			if tasks == 0 || tasks > hostTasks(l) || memory == 0 || memory > walls.MemoryAt(l)+charged {
				t.Errorf("%d tasks of at most %d, %d bytes of at most %d", tasks, hostTasks(l), memory, walls.MemoryAt(l))
			}
		})
	}
}
