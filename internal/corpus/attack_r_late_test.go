package corpus

import (
	"time"

	"github.com/enclave-run/enclave"
)

// lateAttacks are those of group R on a host that looks late: what a workload can
// take before it is ended is a wall, and no matter of how soon somebody samples.
var lateAttacks = []attack{
	late(filling("R60", `
echo '$ARMED'
dd if=/dev/zero of=/work/x bs=1M count=100000 &
dd if=/dev/zero of=/tmp/x bs=1M count=100000 &
wait
sleep 60
`)),
	late(walled(multiplying("R61", `
import os, time
print('$ARMED', flush=True)
time.sleep(0.5) # at the wall the guest gets no thread either, and may not pass it on
while True:
    try: os.fork()
    except OSError: pass
`), bounds{tasks: lateTasks}, bare{pids: 2 * lateTasks, limit: 4 * time.Second})),
	late(attack{
		id: "R62",
		code: `
print('$ARMED', flush=True)
l = []
while True: l.append(bytearray(8 << 20))
`,
		request: limited(enclave.Limits{PidsLimit: 64, MemoryMB: 128}),
		ends:    &ends{kill: "memory_exceeded", resource: "memoryMb"},
		bounds:  &bounds{memory: lateMemory},
		during:  neighbours,
		breaks:  hostDoS,
		control: onBare(bare{memory: 2 * lateMemory, limit: 4 * time.Second}),
	}),
}

const (
	// lateTasks is what a sandbox of 64 processes may have at its wall: gVisor's is
	// the highest, four threads for each and its own.
	lateTasks = 1280
	// lateMemory is what one of 128 MB may use at its wall: that, what gVisor takes for
	// 64 tasks and for itself, and what the kernel keeps.
	lateMemory = 480 << 20
)

// late has the counters of an attack's sandbox looked at a second late.
func late(a attack) attack {
	a.late = true
	return a
}

// walled has an attack bounded by walls instead of by what is sampled.
func walled(a attack, b bounds, in bare) attack {
	a.bounds, a.control = &b, onBare(in)
	return a
}
