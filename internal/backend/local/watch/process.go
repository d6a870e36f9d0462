package watch

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A Process names the first process of a sandbox. A pid alone would name another
// process after a while.
type Process struct {
	PID       int
	StartTime uint64 // proc_pid_stat(5), starttime
}

// Open returns a pollable handle of a process, or nil if it is gone.
func (p Process) Open() (*os.File, error) {
	fd, err := unix.PidfdOpen(p.PID, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "sandbox process")
	// The handle is of whoever has the pid now.
	if at, err := StartTime(p.PID); err != nil || at != p.StartTime {
		f.Close()
		return nil, nil
	}
	return f, nil
}

// Await returns when the process has ended, or at the file's deadline.
func Await(process *os.File) {
	raw, err := process.SyscallConn()
	if err != nil {
		return
	}
	raw.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, 0)
		return err == nil && n > 0
	})
}

// StartTime is when a process started, in clock ticks since boot. One that has
// ended, and that nobody has reaped yet, does not exist.
func StartTime(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, unix.ESRCH) { // it ended between the opening and the reading
		return 0, fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	if err != nil {
		return 0, err
	}
	return parseStartTime(string(b))
}

// parseStartTime reads field 22 of proc_pid_stat(5). The second field, the
// program's name, may hold spaces and parentheses.
func parseStartTime(stat string) (uint64, error) {
	i := strings.LastIndexByte(stat, ')')
	if i < 0 {
		return 0, errors.New("malformed process status")
	}
	fields := strings.Fields(stat[i+1:])
	if len(fields) < 20 {
		return 0, errors.New("malformed process status")
	}
	if fields[0] == "Z" || fields[0] == "X" {
		return 0, fs.ErrNotExist
	}
	return strconv.ParseUint(fields[19], 10, 64)
}
