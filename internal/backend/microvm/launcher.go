package microvm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/local/watch"
)

// A launcher starts the process of a virtual machine monitor, confined, which then
// serves Firecracker's API in its root directory.
type launcher interface {
	// info is what the backend says of itself.
	info() backend.Info

	// cost is what a machine takes of the host beside its guest's memory.
	cost() cost

	// home is the name of the directory in a sandbox's own whose entry id/root is a
	// machine's root directory.
	home() string

	// mode is of the machine's root directory, and owned says that it is the
	// machine's user's, who makes sockets there.
	mode() (mode os.FileMode, owned bool)

	// serial is the name of the file in the root directory that keeps the end of
	// what the guest's console prints, or empty if that is the process's output.
	serial() string

	// arguments are what its guest's kernel is told, beside what every one is.
	arguments() string

	// launch starts the monitor of a machine whose root directory has its files.
	// It returns when the process that is to be watched is known. If it fails,
	// what it has started is in the machine's group, or ends with ctx.
	launch(ctx context.Context, m machine) (*vmm, error)
}

// A machine is what a launcher must know of one.
type machine struct {
	id   string
	base string // the sandbox's directory
	root string // base/home/id/root, which is all that the monitor sees
	user uint32 // of the host, and of this machine alone; its group has the same number

	group   string   // its control group, "enclave-microvm/name"
	dirs    []string // of the group, one for each hierarchy
	unified bool     // the host's controllers are all of version 2
	memory  int64    // the wall of the group, in bytes
	tasks   int64    // another
}

// A vmm is a monitor that this process has started.
type vmm struct {
	process watch.Process
	console *tail         // what the guest's kernel has printed
	said    *tail         // what the monitor has
	silent  chan struct{} // closed when neither says more
	ended   chan struct{} // closed when the process that was started has been waited for
	code    int           // its exit status then; -1 if a signal ended it
}

// spawn starts a program with no environment, no input, a session of its own and
// its output kept. It outlives this process.
func spawn(argv []string, flags uintptr) (*vmm, *exec.Cmd, error) {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = "/"
	cmd.Env = []string{} // nil would be this process's
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: flags}
	v := &vmm{console: &tail{}, said: &tail{}, silent: make(chan struct{}), ended: make(chan struct{})}
	var theirs, ours []*os.File
	closeAll := func(files []*os.File) {
		for _, f := range files {
			f.Close()
		}
	}
	for _, into := range []*io.Writer{&cmd.Stdout, &cmd.Stderr} {
		r, w, err := os.Pipe()
		if err != nil {
			closeAll(append(theirs, ours...))
			return nil, nil, err
		}
		theirs, ours, *into = append(theirs, w), append(ours, r), w
	}
	err := cmd.Start()
	closeAll(theirs)
	if err != nil {
		closeAll(ours)
		return nil, nil, err
	}
	var read sync.WaitGroup
	for i, to := range []*tail{v.console, v.said} {
		read.Go(func() {
			// A monitor in a namespace of its own has these open after the one that
			// was started has ended: what it says is read until it ends itself.
			listen(to, ours[i])
			ours[i].Close()
		})
	}
	go func() { read.Wait(); close(v.silent) }()
	go func() {
		_ = cmd.Wait() // its status is in ProcessState
		v.code = cmd.ProcessState.ExitCode()
		close(v.ended)
	}()
	return v, cmd, nil
}

// breath is between two looks at what a monitor prints.
const breath = 10 * time.Millisecond

// listen writes to to what is read from from, until that ends. A guest may print
// without end, a byte at a time, and Firecracker passes on each (CVE-2020-27174 was
// what kept them): it waits for its reader, who is not paid for by the machine.
func listen(to *tail, from io.Reader) {
	buf := make([]byte, tailSize)
	for {
		n, err := from.Read(buf)
		_, _ = to.Write(buf[:n]) // never fails
		if err != nil {
			return
		}
		time.Sleep(breath)
	}
}

// hear waits until all that a monitor which has ended has said is read.
func (v *vmm) hear() {
	select {
	case <-v.silent:
	case <-time.After(lastWord):
	}
}

// why adds to err what the monitor and the guest's kernel said last. The console
// is in a file of that name, if it has one.
func (v *vmm) why(err error, console string) error {
	// A guest that gives up has its status here before its words: those come by way
	// of the console, which is whole when the monitor has ended.
	if errors.Is(err, errEnded) || errors.Is(err, errUnset) {
		v.hear()
	}
	if s := v.said.last(3); s != "" {
		err = fmt.Errorf("%w: the machine monitor says %q", err, s)
	}
	if console != "" {
		if f, oerr := os.OpenFile(console, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0); oerr == nil {
			_, _ = io.Copy(v.console, io.LimitReader(f, tailSize))
			f.Close()
		}
	}
	if s := v.console.last(5); s != "" {
		err = fmt.Errorf("%w: the guest's console ends with %q", err, s)
	}
	return err
}

// sayWhy adds to err what a monitor that has ended said last.
func (v *vmm) sayWhy(err error) error {
	v.hear()
	if s := v.said.last(1); s != "" {
		return fmt.Errorf("%w: the machine monitor says %q", err, s)
	}
	return err
}

// tailSize is how much is kept of what a monitor or a guest prints.
const tailSize = 16 << 10

// A tail keeps the end of what is written to it: a guest may print without end.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

// Write never fails.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := len(p)
	p = p[max(0, n-tailSize):]
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - tailSize; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	return n, nil
}

// last returns the last lines that are not empty, at most n of them.
func (t *tail) last(n int) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var lines []string
	for line := range bytes.Lines(t.buf) {
		if s := strings.TrimSpace(string(line)); s != "" {
			lines = append(lines, s)
		}
	}
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// errEnded is why a monitor could not be asked for a machine.
var errEnded = errors.New("the machine monitor ended at once")

// died is errEnded with its status.
func (v *vmm) died() error {
	if v.code < 0 {
		return fmt.Errorf("%w, by a signal", errEnded)
	}
	return fmt.Errorf("%w, with status %d", errEnded, v.code)
}
