package control

import "testing"

// One list of cases runs on every real backend, with one verdict for all.

func TestEachLimitHasItsKillReasonOnGVisor(t *testing.T) { eachLimitHasItsKillReason(t, gVisor()) }
func TestEachLimitHasItsKillReasonOnDocker(t *testing.T) { eachLimitHasItsKillReason(t, dockerd()) }

func TestEveryWayOutIsRefusedAndRecordedOnGVisor(t *testing.T) {
	everyWayOutIsRefusedAndRecorded(t, gVisor())
}
func TestEveryWayOutIsRefusedAndRecordedOnDocker(t *testing.T) {
	everyWayOutIsRefusedAndRecorded(t, dockerd())
}

func TestAnAllowedHostIsReachedByNameOnGVisor(t *testing.T) {
	anAllowedHostIsReachedByName(t, gVisor())
}
func TestAnAllowedHostIsReachedByNameOnDocker(t *testing.T) {
	anAllowedHostIsReachedByName(t, dockerd())
}

func TestOddResultsAndExitsOnGVisor(t *testing.T) { oddResultsAndExits(t, gVisor()) }
func TestOddResultsAndExitsOnDocker(t *testing.T) { oddResultsAndExits(t, dockerd()) }

func TestAProgramThatIsNotInTheImageFailsInWordsOnGVisor(t *testing.T) {
	aProgramThatIsNotInTheImageFailsInWords(t, gVisor())
}
func TestAProgramThatIsNotInTheImageFailsInWordsOnDocker(t *testing.T) {
	aProgramThatIsNotInTheImageFailsInWords(t, dockerd())
}

// evidence is the one difference between the backends' events: what the host
// looked at, for each limit, by the beginning of its name. gVisor's own kernel
// knows its tasks and keeps /work and /tmp in files of the host; on Docker both
// are counters of the host's kernel. Wall time, output and traffic are measured
// above every backend and have one name.
var evidence = func() map[string]map[string][]string {
	above := map[string][]string{
		"wallSeconds": {"control plane's clock"}, "outputBytes": {"control plane's byte count"}, "egressBytes": {"gateway's byte count"},
	}
	own := map[string]map[string][]string{
		"gvisor": {
			"pidsLimit":  {"gvisor task list", "cgroup pids.events max"},
			"memoryMb":   {"cgroup memory."},
			"cpuSeconds": {"cgroup cpu"},
			"diskMb":     {"blocks of the sandbox's files on the host"},
		},
		"docker": {
			"pidsLimit":  {"cgroup pids."},
			"memoryMb":   {"cgroup memory.", "docker OOMKilled"},
			"cpuSeconds": {"cgroup cpu"},
			"diskMb":     {"blocks of the sandbox's file systems on the host"},
		},
	}
	for _, m := range own {
		for k, v := range above {
			m[k] = v
		}
	}
	return own
}()
