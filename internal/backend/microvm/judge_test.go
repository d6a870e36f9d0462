package microvm

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/local/watch"
	"github.com/enclave-run/enclave/internal/wire"
)

func limits() backend.Limits {
	return backend.Limits{MilliCPU: 1000, CPU: time.Minute, Memory: 256 << 20, Pids: 64, Disk: 64 << 20}
}

func TestAGuestsReportIsJudgedInOrderOfPrecedence(t *testing.T) {
	const mem, disk = int64(256 << 20), int64(64 << 20)
	for name, tc := range map[string]struct {
		report wire.Report
		want   *watch.Breach
	}{
		"nothing at all":               {wire.Report{}, nil},
		"everything at its limit":      {wire.Report{Tasks: 64, Memory: mem + 64*walls.PerTask, Disk: disk}, nil},
		"one task more":                {wire.Report{Tasks: 65}, &watch.Breach{Cause: backend.PidsLimit, Observed: 65, Evidence: "guest cgroup pids.current", FromGuest: true}},
		"forks refused, and gone":      {wire.Report{Tasks: 1, ForksRefused: 1}, &watch.Breach{Cause: backend.PidsLimit, Observed: 96, Evidence: "guest cgroup pids.events max", FromGuest: true}},
		"killed for memory":            {wire.Report{OOMKills: 1}, &watch.Breach{Cause: backend.MemoryLimit, Observed: mem, Evidence: "guest cgroup memory.events oom_kill", FromGuest: true}},
		"one byte more":                {wire.Report{Tasks: 2, Memory: mem + 2*walls.PerTask + 1}, &watch.Breach{Cause: backend.MemoryLimit, Observed: mem + 2*walls.PerTask + 1, Evidence: "guest cgroup memory.current", FromGuest: true}},
		"one byte on disk":             {wire.Report{Disk: disk + 1}, &watch.Breach{Cause: backend.DiskLimit, Observed: disk + 1, Evidence: "guest blocks of the file system of /work and /tmp", FromGuest: true}},
		"a bomb that is heavy as well": {wire.Report{Tasks: 65, OOMKills: 9, Memory: 2 * mem, Disk: 2 * disk}, &watch.Breach{Cause: backend.PidsLimit, Observed: 65, Evidence: "guest cgroup pids.current", FromGuest: true}},
		"memory before disk":           {wire.Report{OOMKills: 1, Memory: 2 * mem, Disk: 2 * disk}, &watch.Breach{Cause: backend.MemoryLimit, Observed: 2 * mem, Evidence: "guest cgroup memory.events oom_kill", FromGuest: true}},
	} {
		t.Run(name, func(t *testing.T) {
			if d := cmp.Diff(tc.want, watch.Judge(counters(tc.report, limits()), limits(), walls)); d != "" {
				t.Error(d)
			}
		})
	}
}

// TestEachWallLiesBehindTheLast holds the order without which one limit would be
// found for another: what a workload may use, where its kernel kills it, what its
// machine has, what the host gives the machine.
func TestEachWallLiesBehindTheLast(t *testing.T) {
	for name, l := range map[string]backend.Limits{
		"the usual":    {Memory: 512 << 20, Pids: 256, Disk: 512 << 20},
		"the smallest": {Memory: 1 << 20, Pids: 1, Disk: 1 << 20},
		"the largest":  {Memory: 16 << 30, Pids: 4096, Disk: 16 << 30},
	} {
		allowed := walls.Allowed(l, l.Pids) + l.Disk
		wall, machine := walls.MemoryAt(l), guestMiB(l)*mib
		if wall <= allowed {
			t.Errorf("%s: the guest's kernel kills at %d, within what is allowed, %d", name, wall, allowed)
		}
		if rest := machine - wall - machine/pageShare; rest < guestMemory {
			t.Errorf("%s: beside a full workload %d bytes are left for the guest's kernel", name, rest)
		}
		for _, c := range []cost{byQEMU{}.cost(), byJailer{}.cost()} {
			if host := hostMemory(l, c); host < machine+64<<20 {
				t.Errorf("%s: the host's wall is %d, of a machine of %d", name, host, machine)
			}
		}
		if walls.TasksAt(l) <= l.Pids {
			t.Errorf("%s: between limit and wall there is no room for evidence", name)
		}
	}
}
