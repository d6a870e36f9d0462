package watch

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

func TestStartTimeIsTheKernels(t *testing.T) {
	cmd := exec.Command("sleep", "100")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	mine, err := StartTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	childs, err := StartTime(cmd.Process.Pid)
	if err != nil || childs < mine {
		t.Errorf("a child started at %d, %v, its parent at %d", childs, err, mine)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	// It has ended, and is not reaped.
	if err := unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := StartTime(cmd.Process.Pid); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a process that has ended: %v", err)
	}
	if _, err := StartTime(1 << 30); err == nil {
		t.Error("a process that can't be has a start time")
	}
}

// FuzzStartTime builds a status whose program has any name at all.
func FuzzStartTime(f *testing.F) {
	f.Add("sleep", uint64(123))
	f.Add(") R 1 2 3 (", uint64(1))
	f.Add("a b) ", uint64(1<<63))
	f.Fuzz(func(t *testing.T, name string, want uint64) {
		stat := fmt.Sprintf("42 (%s) S", name)
		for field := 4; field <= 52; field++ {
			if field == 22 {
				stat += fmt.Sprintf(" %d", want)
			} else {
				stat += " 7"
			}
		}
		if got, err := parseStartTime(stat + "\n"); err != nil || got != want {
			t.Errorf("%q: %d, %v, want %d", stat, got, err, want)
		}
		// Anything else is an error or a number, and no panic.
		parseStartTime(name)
	})
}
