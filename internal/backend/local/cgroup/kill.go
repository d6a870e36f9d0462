package cgroup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Procs are the ids of the processes in the group, in whatever hierarchy, as this
// process's pid namespace knows them. A group that does not exist has none.
func (g *Group) Procs() ([]int, error) {
	var pids []int
	for _, d := range g.Dirs() {
		found, err := procs(d)
		if err != nil {
			return nil, err
		}
		for _, pid := range found {
			if !slices.Contains(pids, pid) {
				pids = append(pids, pid)
			}
		}
	}
	return pids, nil
}

// Has reports whether a process is in the group in every hierarchy. One that is
// missing in any is not limited, or not counted, by what that is for.
func (g *Group) Has(pid int) (bool, error) {
	for _, d := range g.Dirs() {
		found, err := procs(d)
		if err != nil || !slices.Contains(found, pid) {
			return false, err
		}
	}
	return true, nil
}

// procs are the processes of one directory.
func procs(dir string) ([]int, error) {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list cgroup: %w", err)
	}
	var pids []int
	for _, f := range bytes.Fields(b) {
		pid, err := strconv.Atoi(string(f))
		if err != nil {
			return nil, fmt.Errorf("list cgroup: %w", err)
		}
		// 0 is a process of another pid namespace, which can't be killed here.
		if pid == 0 {
			return nil, fmt.Errorf("list cgroup %s: it has a process outside this pid namespace", dir)
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// Kill kills every process in the group and returns when none is left. What is
// in the group when it is called, and what that forks meanwhile, dies; a group
// that does not exist is dead. Its share of CPU is lifted: a process that is out
// of its share can't even die, and a small one would make that take long.
func (g *Group) Kill(ctx context.Context) error {
	if exists, err := g.Exists(); err == nil && exists {
		g.liftCPU() // without it the group dies all the same, later
	}
	var wait *time.Timer
	for delay := 250 * time.Microsecond; ; delay = min(2*delay, 10*time.Millisecond) {
		// cgroup.kill (since Linux 5.14) kills the whole group at once. Where it
		// is missing each round kills what it finds: a fork between reading and
		// killing is found in the next, and the head of a pid namespace takes the
		// rest with it.
		if g.tree.unified != "" {
			os.WriteFile(filepath.Join(g.tree.unified, g.name, "cgroup.kill"), []byte("1"), 0)
		}
		pids, err := g.Procs()
		if err != nil {
			return err
		}
		if len(pids) == 0 {
			return nil
		}
		if err := g.signal(pids); err != nil {
			return err
		}
		if wait == nil {
			wait = time.NewTimer(delay)
			defer wait.Stop()
		} else {
			wait.Reset(delay)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("kill cgroup %s: %d processes left: %w", g.name, len(pids), ctx.Err())
		case <-wait.C:
		}
	}
}

// signal kills those of pids that are in the group. A pid may have become
// another process's since it was read: the handle is taken first, and what is
// still listed after that is the process of the handle.
func (g *Group) signal(pids []int) error {
	handles := make(map[int]int, len(pids))
	defer func() {
		for _, fd := range handles {
			unix.Close(fd)
		}
	}()
	for _, pid := range pids {
		if fd, err := unix.PidfdOpen(pid, 0); err == nil {
			handles[pid] = fd
		} else if !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill cgroup %s: %w", g.name, err)
		}
	}
	now, err := g.Procs()
	if err != nil {
		return err
	}
	for _, pid := range now {
		if fd, ok := handles[pid]; ok {
			if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("kill cgroup %s: %w", g.name, err)
			}
		}
	}
	return nil
}
