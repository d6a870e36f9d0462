package bench

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/mountinfo"
)

func middle(fs []float64) float64 {
	slices.Sort(fs)
	return fs[len(fs)/2]
}

// idleMemory is what one more idle session of a backend adds, measured on n: the
// proportional set size of its processes, and what the gateway process grew by.
func idleMemory(ctx context.Context, c Config, name, backend string, n int) (_ []Result, err error) {
	if why := c.Missing[backend]; why != "" {
		return nil, skip(why)
	}
	p, err := c.boot(ctx, backend)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.Close(context.WithoutCancel(ctx))) }()
	before, err := descendants(p.State.Instance)
	if err != nil {
		return nil, err
	}
	base, err := pss(before)
	if err != nil {
		return nil, err
	}
	for range n {
		h, err := p.Client.Run(ctx, enclave.SessionRequest{Code: "import time\nprint('idle', flush=True)\ntime.sleep(3600)\n"})
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, h.Teardown(context.WithoutCancel(ctx))) }()
		for ev, err := range h.Stream(ctx) {
			if err != nil {
				return nil, err
			}
			if ev.Kind == enclave.StreamStdout {
				break
			}
		}
	}
	select { // let the collectors run
	case <-time.After(3 * time.Second):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	after, err := descendants(p.State.Instance)
	if err != nil {
		return nil, err
	}
	if len(after) < len(before)+n {
		return nil, fmt.Errorf("%d processes were found of %d sandboxes", len(after)-len(before), n)
	}
	now, err := pss(after)
	if err != nil {
		return nil, err
	}
	mb := float64(now-base) / float64(n) / 1e6
	return []Result{alone(name, mb, "MB", fmt.Sprintf("each of %d sessions that sleep in Python: all processes, with the gateway's share", n))}, nil
}

// descendants returns the gateway process and the sandboxes' processes: those
// in a control group of an instance, our children, and what a Docker daemon
// started to hold a container of it.
func descendants(instance string) ([]int, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var pids []int
	shims := map[int]bool{}
	for _, d := range dirs {
		groups, err := os.ReadFile(filepath.Join(d, "cgroup"))
		if err != nil {
			continue // it ended
		}
		pid, err := strconv.Atoi(filepath.Base(d))
		if err != nil || pid == os.Getpid() {
			continue
		}
		stat, err := os.ReadFile(filepath.Join(d, "stat"))
		if err != nil {
			continue
		}
		after := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if len(after) < 2 {
			continue
		}
		parent, err := strconv.Atoi(after[1])
		if err != nil {
			continue
		}
		if parent == os.Getpid() {
			pids = append(pids, pid)
		} else if strings.Contains(string(groups), "/"+instance+"-") {
			pids = append(pids, pid)
			if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", parent)); err == nil && strings.HasPrefix(string(comm), "containerd-shim") {
				shims[parent] = true
			}
		}
	}
	return slices.AppendSeq(pids, maps.Keys(shims)), nil
}

// pss sums the proportional set sizes of processes, in bytes (proc(5),
// smaps_rollup).
func pss(pids []int) (int64, error) {
	var total int64
	for _, pid := range pids {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
				continue
			}
			return 0, err
		}
		for line := range strings.Lines(string(raw)) {
			var kb int64
			if _, err := fmt.Sscanf(line, "Pss: %d kB", &kb); err == nil {
				total += kb * 1024
				break
			}
		}
	}
	return total, nil
}

// unmountBelow unmounts what is mounted under dir, last first.
func unmountBelow(dir string) {
	mounts, err := mountinfo.Table()
	if err != nil {
		return
	}
	for _, at := range mountinfo.Below(mounts, dir) {
		_ = unix.Unmount(at, unix.MNT_DETACH) // what stays is reported by RemoveAll
	}
}
