package local

import (
	"os"
	"strconv"
	"strings"
	"testing"
)

// A server that the host is told to spare does not pass that on, and one that is to
// go first has nobody go after it.
func TestSandboxesGoBeforeTheirHost(t *testing.T) {
	raw, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		t.Fatal(err)
	}
	own, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		t.Fatal(err)
	}
	if got := OOMScore(); got < own || got < oomScore || got > 1000 {
		t.Errorf("sandboxes have %d, and this process %d", got, own)
	}
}
