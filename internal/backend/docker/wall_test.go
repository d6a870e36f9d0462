package docker

import (
	"runtime"
	"testing"
	"time"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/local/cgroup"
	"github.com/enclave-run/enclave/internal/testenv"
	"github.com/enclave-run/enclave/internal/wire"
)

// charged is how far the kernel counts past a limit of memory before it refuses: it
// charges pages in batches.
const charged = 64 << 12

// What a workload can take is a wall, however late somebody looks: here a second.
func TestLimitsAreWallsHoweverLateSomebodyLooks(t *testing.T) {
	c := config(t, testenv.Docker(t))
	c.Late = time.Second
	b := open(t, c)
	fill := func(l backend.Limits) int64 { return walls.DiskAt(l) }
	for name, tc := range map[string]struct {
		code     []string // of bash, all at once
		cause    backend.Cause
		counter  func(*cgroup.Group) (int64, error)
		wall     func(backend.Limits) int64
		observed func(backend.Limits) int64 // 0 is not known
	}{
		"disk in one place":                {[]string{"cat /dev/zero > /work/a; sleep 60"}, backend.DiskLimit, nil, nil, fill},
		"disk in two places at once":       {[]string{"cat /dev/zero > /work/a; sleep 60", "cat /dev/zero > /tmp/a; sleep 60"}, backend.DiskLimit, nil, nil, fill},
		"disk that is removed and written": {[]string{"while :; do head -c 39M /dev/zero > /work/a; rm /work/a; done", "head -c 33M /dev/zero > /tmp/a; sleep 60"}, backend.DiskLimit, (*cgroup.Group).PeakMemory, walls.MemoryAt, fill},
		"processes":                        {[]string{"for i in {1..2000}; do sleep 60 & done; wait"}, backend.PidsLimit, (*cgroup.Group).Tasks, func(l backend.Limits) int64 { return tasksWall(l) - charged }, nil},
		"memory":                           {[]string{"exec python3 -c 'import time; b = bytearray(2 << 30); time.sleep(60)'"}, backend.MemoryLimit, (*cgroup.Group).PeakMemory, walls.MemoryAt, nil},
		"memory and disk":                  {[]string{"cat /dev/zero > /work/a; sleep 60", "exec python3 -c 'import time; b = bytearray(2 << 30); time.sleep(60)'"}, backend.MemoryLimit, (*cgroup.Group).PeakMemory, walls.MemoryAt, nil},
	} {
		t.Run(name, func(t *testing.T) {
			l := limits()
			l.Disk = 32 << 20
			x := startWith(t, b, newID(), l)
			s, err := b.Sandbox(x.id)
			if err != nil {
				t.Fatal(err)
			}
			for _, code := range tc.code {
				p, err := x.guest.Start(deadline(t), wire.StartRequest{Language: "bash", Code: code})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { p.Close() })
			}
			ended := make(chan backend.Exit)
			go func() {
				e, err := b.Wait(deadline(t), x.id)
				if err != nil {
					t.Error(err)
				}
				ended <- e
			}()
			var e backend.Exit
			var most int64
			for running := true; running; {
				select {
				case e = <-ended:
					running = false
				default:
					runtime.Gosched()
				}
				if tc.counter != nil {
					if n, err := tc.counter(s.Group); err == nil {
						most = max(most, n)
					}
				}
			}
			if e.Cause != tc.cause {
				t.Errorf("the sandbox ended with %+v", e)
			}
			if tc.observed != nil && (e.Observed <= l.Disk || e.Observed > tc.observed(l)) {
				t.Errorf("%d bytes were seen, of at most %d", e.Observed, tc.observed(l))
			}
			if tc.wall != nil && (most == 0 || most > tc.wall(l)+charged) {
				t.Errorf("%d were there at a time, of at most %d", most, tc.wall(l))
			}
		})
	}
}
