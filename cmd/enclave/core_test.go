package main

import (
	"fmt"
	"os"
	"regexp"
	"testing"
)

// What a server starts has its limits.
func TestAServerWritesNoCoreFile(t *testing.T) {
	env, _ := simulated(t)
	v := startServe(t, env)
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", v.cmd.Process.Pid))
	if err != nil || !regexp.MustCompile(`(?m)^Max core file size +1 +1 `).Match(limits) {
		t.Errorf("its limits are %s, %v", limits, err)
	}
	v.stop(t)
}
