//go:build failpoint

package failpoint

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// Enabled reports whether this program was built with failpoints.
const Enabled = true

// Variable names the one place that acts in this process, and how:
//
//	NAME=kill     the process dies by SIGKILL, as in a power cut or an OOM kill
//	NAME=error    Hit returns an error
//
// each with an optional "@N": the Nth time only, counted from 1. Without it,
// the first.
const Variable = "ENCLAVE_FAILPOINT"

// A point is what Variable says.
type point struct {
	name, action string
	nth          int64
	hits         atomic.Int64
}

var armed = parse(os.Getenv(Variable))

func parse(v string) *point {
	if v == "" {
		return nil
	}
	name, action, ok := strings.Cut(v, "=")
	p := &point{name: name, nth: 1}
	action, nth, counted := strings.Cut(action, "@")
	if p.action = action; counted {
		n, err := strconv.ParseInt(nth, 10, 64)
		if ok = ok && err == nil && n > 0; ok {
			p.nth = n
		}
	}
	if !ok || (p.action != "kill" && p.action != "error") {
		fmt.Fprintf(os.Stderr, "%s=%q is not NAME=kill or NAME=error, with @N\n", Variable, v)
		os.Exit(2)
	}
	return p
}

// Hit acts if the place called name is the armed one.
func Hit(name string) error {
	p := armed
	if p == nil || p.name != name || p.hits.Add(1) != p.nth {
		return nil
	}
	// Whoever armed it must be able to tell that the place was reached.
	fmt.Fprintf(os.Stderr, "failpoint %s %s\n", p.name, p.action)
	if p.action == "kill" {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // the signal may take a moment to arrive; nothing more happens here
	}
	return fmt.Errorf("failpoint %s", name)
}
