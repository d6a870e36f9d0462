package server

import (
	"math"
	"testing"
)

// Whatever the host, something is kept back, something is left for sessions, and
// more of a resource is never less for them.
func TestAHostKeepsSomethingBackAndLeavesSomething(t *testing.T) {
	sizes := []int64{1, 1 << 20, 200 << 20, 1 << 30, 24 << 30, 1 << 40}
	var last hostSize
	for _, n := range sizes {
		h := hostSize{memory: n, tasks: n, files: uint64(n), disk: n}
		for what, now := range map[string][2]int64{
			"memory":      {h.memoryForSessions(1), last.memoryForSessions(1)},
			"processes":   {h.tasksForSessions(), last.tasksForSessions()},
			"descriptors": {h.filesForSessions(), last.filesForSessions()},
			"disk":        {h.disk - h.diskReserve(), last.disk - last.diskReserve()},
		} {
			if now[0] < now[1] || now[0] < 1 || n > 1 && now[0] >= n {
				t.Errorf("%s: of %d, %d is for sessions, of less %d", what, n, now[0], now[1])
			}
		}
		last = h
	}
	if n := (hostSize{memory: 16 << 30}).memoryForSessions(2); n != 28<<30 {
		t.Errorf("twice the memory of a host of 16 GiB is %d", n)
	}
	if n := (hostSize{files: math.MaxUint64}).filesForSessions(); n < 1 || n > gatewayFiles {
		t.Errorf("without a limit of descriptors there are %d", n)
	}
}

func TestThisHostCanBeMeasured(t *testing.T) {
	h, err := measureHost(t.TempDir())
	if err != nil || h.memory < 1<<20 || h.tasks < 2 || h.files < 2 || h.disk < 1<<20 {
		t.Errorf("%+v, %v", h, err)
	}
	if _, err := measureHost("/no/such/directory"); err == nil {
		t.Error("a directory that is not there was measured")
	}
}
