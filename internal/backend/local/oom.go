package local

import (
	"os"
	"strconv"
	"strings"
)

// oomScore is every sandbox's, if not this process has a higher one.
const oomScore = 500

// OOMScore is what the processes of a sandbox have in /proc/PID/oom_score_adj
// (proc(5)): a host that runs out of memory kills sandboxes before what is its own.
// They would have their starter's else, whom systemd is told to spare. It is never
// lower than this process's, which it would take a privilege to go below.
func OOMScore() int {
	raw, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return oomScore
	}
	own, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		return oomScore
	}
	return max(oomScore, own)
}
