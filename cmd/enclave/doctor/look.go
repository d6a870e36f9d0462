package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"github.com/enclave-run/enclave/internal/backend/all"
	"golang.org/x/sys/unix"
)

// look gathers every fact. It leaves nothing behind, and none of its steps takes
// longer than lookTime.
func look(ctx context.Context, c Config) *host {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	begun := time.Now()
	kind, _ := all.Named(c.Backends[0]) // validate has found it
	h := &host{kind: kind, gatewayUser: c.GatewayUser, arch: runtime.GOARCH, euid: os.Geteuid()}
	h.kernel = learn(kernel())
	h.caps = learn(capabilities())
	h.seccomp = learn(missingActions())
	h.namespaces = learn(struct{}{}, ownNamespaces())
	h.ptrace = learn(setting("/proc/sys/kernel/yama/ptrace_scope", 0))
	h.overcommit = learn(setting("/proc/sys/vm/overcommit_memory", 0))
	h.memory = learn(memoryLeft())
	n, lack, err := c.AtOnce(h.kind.Name)
	h.atOnce = learn(atOnce{n, lack}, err)
	h.nofile = learn(openLimit())
	h.files = learn(openFiles())
	h.tasks = learn(tasks())
	h.entropy = learn(entropy())
	h.flaws = learn(vulnerabilities("/sys/devices/system/cpu/vulnerabilities"))
	h.lookAtGroups()
	h.lookAtState(ctx, c)
	h.lookInRoom(ctx, c)
	h.lookAtServices(ctx, c)
	h.lookAtFirecracker(ctx, c)
	h.clock = learn(readClock(begun, c.Now()))
	return h
}

const lookTime = 2 * time.Minute

func kernel() (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", err
	}
	return unix.ByteSliceToString(u.Release[:]), nil
}

func capabilities() (uint64, error) {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "CapEff:"); ok {
			return strconv.ParseUint(strings.TrimSpace(v), 16, 64)
		}
	}
	return 0, errors.New("/proc/self/status names no capabilities")
}

// missingActions asks the kernel for each action of a filter that gVisor's platform
// or the gateway uses (seccomp(2), SECCOMP_GET_ACTION_AVAIL).
func missingActions() ([]string, error) {
	const getActionAvail = 2
	var missing []string
	for name, action := range map[string]uint32{
		"traps": unix.SECCOMP_RET_TRAP, "errors": unix.SECCOMP_RET_ERRNO, "kills": unix.SECCOMP_RET_KILL_PROCESS,
		"notifications": unix.SECCOMP_RET_USER_NOTIF,
	} {
		_, _, errno := unix.Syscall(unix.SYS_SECCOMP, getActionAvail, 0, uintptr(unsafe.Pointer(&action)))
		switch errno {
		case 0:
		case unix.EOPNOTSUPP:
			missing = append(missing, name)
		default:
			return nil, fmt.Errorf("ask for %s: %w", name, errno)
		}
	}
	return missing, nil
}

// ownNamespaces starts a process in namespaces of its own, with a user of its own.
// The program does not exist: that nothing but this is wrong is the proof.
func ownNamespaces() error {
	cmd := &exec.Cmd{Path: "/proc/self/no-such-program", Args: []string{"none"}, Env: []string{}, SysProcAttr: &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
	}}
	err := cmd.Start()
	switch {
	case err == nil:
		return errors.Join(errors.New("a program that does not exist was started"), cmd.Wait())
	case errors.Is(err, fs.ErrNotExist):
		return nil
	}
	return err
}

// setting reads a number that the kernel keeps in a file, or def if it has none.
func setting(path string, def int) (int, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return def, nil
	}
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}

func memoryLeft() (m memory, err error) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return m, err
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		n, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil {
			continue
		}
		switch f[0] {
		case "MemTotal:":
			m.total = n << 10
		case "MemAvailable:":
			m.available = n << 10
		}
	}
	if m.total == 0 {
		return m, errors.New("/proc/meminfo names no memory")
	}
	return m, nil
}

func openLimit() (uint64, error) {
	var l unix.Rlimit
	err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l)
	return l.Max, err
}

func openFiles() (count, error) {
	b, err := os.ReadFile("/proc/sys/fs/file-nr")
	if err != nil {
		return count{}, err
	}
	f := strings.Fields(string(b))
	if len(f) != 3 {
		return count{}, fmt.Errorf("/proc/sys/fs/file-nr says %q", b)
	}
	used, err := strconv.ParseInt(f[0], 10, 64)
	most, merr := strconv.ParseInt(f[2], 10, 64)
	return count{used, most}, errors.Join(err, merr)
}

func tasks() (count, error) {
	pids, err := setting("/proc/sys/kernel/pid_max", 0)
	if err != nil {
		return count{}, err
	}
	threads, err := setting("/proc/sys/kernel/threads-max", pids)
	if err != nil {
		return count{}, err
	}
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return count{}, err
	}
	var used int64
	var l1, l5, l15 float64
	var running int
	if _, err := fmt.Sscanf(string(b), "%f %f %f %d/%d", &l1, &l5, &l15, &running, &used); err != nil {
		return count{}, fmt.Errorf("/proc/loadavg: %w", err)
	}
	return count{used, int64(min(pids, threads))}, nil
}

func entropy() (bool, error) {
	var b [1]byte
	_, err := unix.Getrandom(b[:], unix.GRND_NONBLOCK)
	if errors.Is(err, unix.EAGAIN) {
		return false, nil
	}
	return err == nil, err
}

// vulnerabilities names the flaws of the CPU that are open.
func vulnerabilities(dir string) ([]string, error) {
	all, err := flaws(dir, func(s string) bool { return strings.HasPrefix(s, "Vulnerable") })
	for i, f := range all {
		all[i], _, _ = strings.Cut(f, ": ")
	}
	return all, err
}

// flaws lists the flaws of the CPU with what the kernel says of each, if it is bad.
func flaws(dir string, bad func(string) bool) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // the architecture lists none
	}
	if err != nil {
		return nil, err
	}
	var all []string
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		if s := strings.TrimSpace(string(b)); bad(s) {
			all = append(all, e.Name()+": "+s)
		}
	}
	return all, nil
}

func readClock(begun, now time.Time) (clock, error) {
	c := clock{now: now}
	// Without its monotonic part a time is the wall clock's.
	c.drift = time.Now().Round(0).Sub(begun.Round(0)) - time.Since(begun)
	var t unix.Timex
	if _, err := unix.Adjtimex(&t); err != nil {
		return c, fmt.Errorf("ask whether the clock is synchronized: %w", err)
	}
	c.synchronized = t.Status&unix.STA_UNSYNC == 0
	return c, nil
}
