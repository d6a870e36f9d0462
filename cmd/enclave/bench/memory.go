package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/cmd/enclave/demo"
	"github.com/enclave-run/enclave/internal/mountinfo"
)

func middle(fs []float64) float64 {
	slices.Sort(fs)
	return fs[len(fs)/2]
}

// idleMemory is what one more idle session adds: the proportional set size of
// its processes, and what the gateway process grew by.
func idleMemory(ctx context.Context, c Config) (_ []Result, err error) {
	p, err := c.Boot(ctx, demo.Boot{Backend: "gvisor"})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.Close(context.WithoutCancel(ctx))) }()
	before, err := descendants()
	if err != nil {
		return nil, err
	}
	base, err := pss(before)
	if err != nil {
		return nil, err
	}
	const n = 10
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
	after, err := descendants()
	if err != nil {
		return nil, err
	}
	now, err := pss(after)
	if err != nil {
		return nil, err
	}
	mb := float64(now-base) / n / 1e6
	return []Result{alone("idle_session_pss", mb, "MB", fmt.Sprintf("each of %d sessions that sleep in Python: all processes, with the gateway's share", n))}, nil
}

// descendants returns the gateway process and the sandboxes' processes: those
// in a control group of ours, and our children.
func descendants() ([]int, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var pids []int
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
		ours := len(after) > 1 && after[1] == strconv.Itoa(os.Getpid())
		if ours || strings.Contains(string(groups), "/enclave/") {
			pids = append(pids, pid)
		}
	}
	return pids, nil
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
