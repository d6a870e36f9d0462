// Package stranger has a test be other users of the host. It imports none of our
// packages, so that those package testenv is made of can use it in their tests.
package stranger

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Users are users of a host who own no sandbox: a person, nobody, and that of
// the gateway.
var Users = []int{1000, 65534, 64741}

// As has f run as a user of the host without any privilege, which takes root. f may
// report failures, and not end the test.
func As(user int, f func()) error {
	done := make(chan error, 1)
	var become func()
	become = func() {
		// The thread ends with this goroutine, and nothing else ever runs on it. The
		// process's first thread would not end, and /proc/self is that thread's: it is
		// held while another is used.
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			other := make(chan struct{})
			go func() { defer close(other); become() }()
			<-other
			runtime.UnlockOSThread()
			return
		}
		id := uintptr(user)
		for _, call := range [][4]uintptr{{unix.SYS_SETGROUPS}, {unix.SYS_SETRESGID, id, id, id}, {unix.SYS_SETRESUID, id, id, id}} {
			// Go's own functions would do it for every thread.
			if _, _, errno := syscall.RawSyscall(call[0], call[1], call[2], call[3]); errno != 0 {
				done <- errno
				return
			}
		}
		f()
		done <- nil
	}
	go become()
	if err := <-done; err != nil {
		return fmt.Errorf("become user %d: %w", user, err)
	}
	return nil
}

// Dir is a temporary directory that every user of the host can list and pass
// through, unlike t.TempDir's.
func Dir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{filepath.Dir(dir), dir} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
