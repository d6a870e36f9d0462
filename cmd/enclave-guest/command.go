//go:build linux

package main

import (
	_ "embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/wire"
)

//go:embed shim/run.py
var pythonShim []byte

//go:embed shim/run.cjs
var nodeShim []byte

// The result command comes last: it must not hide one of the image's.
const workloadPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:" + wire.RunDir + "/bin"

// A command is what a StartRequest comes to.
type command struct {
	path string
	argv []string
	attr *syscall.ProcAttr
}

// A language is how code of it is run: the names its interpreter may have, the
// file the code is written to, and the shim, if any, that is run with that file
// as its argument.
type language struct {
	interpreters []string
	suffix       string
	shimName     string
	shim         []byte
}

func languageOf(name string) (language, bool) {
	switch name {
	case "python":
		return language{[]string{"python3", "python"}, ".py", "run.py", pythonShim}, true
	case "node":
		return language{[]string{"node", "nodejs"}, ".js", "run.cjs", nodeShim}, true
	case "bash":
		return language{interpreters: []string{"bash"}, suffix: ".sh"}, true
	}
	return language{}, false
}

func badRequest(format string, args ...any) error {
	return &wire.CallError{Code: wire.CodeBadRequest, Detail: fmt.Sprintf(format, args...)}
}

// argv returns what r asks to run, having written its code.
func (t *table) argv(r wire.StartRequest) ([]string, error) {
	if (r.Language == "") == (len(r.Argv) == 0) {
		return nil, badRequest("exactly one of language and argv is needed")
	}
	if r.Language == "" {
		if r.Code != "" {
			return nil, badRequest("code needs a language")
		}
		return r.Argv, nil
	}
	l, ok := languageOf(r.Language)
	if !ok {
		return nil, badRequest("unknown language %q", r.Language)
	}
	for _, name := range l.interpreters {
		interpreter, err := lookPath(name)
		if err != nil {
			continue
		}
		code, err := writeCode(l, r.Code)
		if err != nil {
			return nil, err
		}
		if l.shim == nil {
			return []string{interpreter, code}, nil
		}
		shim := filepath.Join(wire.RunDir, l.shimName)
		if err := os.WriteFile(shim, l.shim, 0o644); err != nil {
			return nil, fmt.Errorf("write the shim: %w", err)
		}
		return []string{interpreter, shim, code}, nil
	}
	return nil, &wire.CallError{
		Code:   wire.CodeNoInterpreter,
		Detail: fmt.Sprintf("no interpreter for %s: looked for %s", r.Language, strings.Join(l.interpreters, ", ")),
	}
}

// writeCode writes code to a file that the workload can read and not write: the
// first one is called main, so that it reads well in a traceback.
func writeCode(l language, code string) (string, error) {
	for i := 1; i < 1<<20; i++ {
		name := "main" + l.suffix
		if i > 1 {
			name = fmt.Sprintf("main-%d%s", i, l.suffix)
		}
		path := filepath.Join(wire.RunDir, name)
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if errors.Is(err, os.ErrExist) {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("write the code: %w", err)
		}
		_, err = f.WriteString(code)
		if err2 := f.Close(); err == nil {
			err = err2
		}
		if err != nil {
			return "", fmt.Errorf("write the code: %w", err)
		}
		return path, nil
	}
	return "", errors.New("too many pieces of code")
}

// lookPath finds an executable file as the workload's PATH would.
func lookPath(name string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for dir := range strings.SplitSeq(workloadPath, ":") {
		path := filepath.Join(dir, name)
		if fi, err := os.Stat(path); err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", &wire.CallError{Code: wire.CodeNotFound, Detail: fmt.Sprintf("no program %q in %s", name, workloadPath)}
}

// environment returns exactly what the workload gets, sorted.
func environment(extra map[string]string) ([]string, error) {
	env := map[string]string{"PATH": workloadPath, "HOME": wire.WorkDir, "LANG": "C.UTF-8", "TMPDIR": "/tmp"}
	for k, v := range extra {
		if k == "" || strings.ContainsAny(k, "=\x00") || strings.Contains(v, "\x00") {
			return nil, badRequest("environment variable %q can't be set", k)
		}
		env[k] = v
	}
	list := make([]string, 0, len(env))
	for k, v := range env {
		list = append(list, k+"="+v)
	}
	sort.Strings(list)
	return list, nil
}

// launch starts what r says and sends its events to w. The process has been
// started, and attend has been called, when it returns nil.
func (t *table) launch(r wire.StartRequest, w *eventWriter) (*process, error) {
	argv, err := t.argv(r)
	if err != nil {
		return nil, err
	}
	path, err := lookPath(argv[0])
	if err != nil {
		return nil, err
	}
	env, err := environment(r.Env)
	if err != nil {
		return nil, err
	}
	dir := r.Cwd
	if dir == "" {
		dir = wire.WorkDir
	}
	p := &process{
		language: r.Language, argv: argv, out: &output{primary: w},
		exited: make(chan struct{}), done: make(chan struct{}),
	}
	files, err := p.plumb(t, r)
	if err != nil {
		return nil, err
	}
	fds := make([]uintptr, len(files))
	for i, f := range files {
		fds[i] = f.Fd()
	}
	// Nothing is sent between the start and the event that tells of it.
	p.out.mu.Lock()
	err = t.start(p, &command{path, argv, &syscall.ProcAttr{
		Dir: dir, Env: env, Files: fds,
		Sys: &syscall.SysProcAttr{
			Credential: &syscall.Credential{Uid: t.uid, Gid: t.gid, Groups: []uint32{}},
			Setsid:     true,
			Setctty:    r.Terminal != nil,
		},
	}})
	if err == nil {
		p.out.started(p.id, p.pid)
	}
	p.out.mu.Unlock()
	for _, f := range files {
		f.Close()
	}
	if err != nil {
		p.abandon()
		return nil, err
	}
	go t.attend(p)
	return p, nil
}

// plumb makes p's side of its three files and returns the workload's, which are
// the caller's to close.
func (p *process) plumb(t *table, r wire.StartRequest) (files []*os.File, err error) {
	defer func() {
		if err != nil {
			p.abandon()
			for _, f := range files {
				f.Close()
			}
		}
	}()
	if r.Terminal != nil {
		master, slave, err := openTerminal(t.uid, t.gid, *r.Terminal)
		if err != nil {
			return nil, err
		}
		p.terminal, p.stdin, p.readers = master, master, []*os.File{master}
		return []*os.File{slave, dup(slave), dup(slave)}, nil
	}
	if r.Stdin {
		in, w, err := os.Pipe()
		if err != nil {
			return files, fmt.Errorf("make a pipe: %w", err)
		}
		p.stdin, files = w, append(files, in)
	} else {
		null, err := os.Open(os.DevNull)
		if err != nil {
			return files, fmt.Errorf("open the null device: %w", err)
		}
		files = append(files, null)
	}
	for range 2 {
		r, w, err := os.Pipe()
		if err != nil {
			return files, fmt.Errorf("make a pipe: %w", err)
		}
		p.readers, files = append(p.readers, r), append(files, w)
	}
	return files, nil
}

// abandon closes what a process that did not start would have used.
func (p *process) abandon() {
	for _, r := range p.readers {
		r.Close()
	}
	if p.stdin != nil {
		p.stdin.Close()
	}
}

func dup(f *os.File) *os.File {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return f
	}
	return os.NewFile(uintptr(fd), f.Name())
}

// openTerminal makes a terminal whose slave belongs to the workload, so that it
// can open it again by name.
func openTerminal(uid, gid uint32, s wire.Size) (master, slave *os.File, err error) {
	err = asUser(uid, gid, func() error {
		fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("open a terminal: %w", err)
		}
		master = os.NewFile(uintptr(fd), "/dev/ptmx")
		if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
			return fmt.Errorf("unlock the terminal: %w", err)
		}
		n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
		if err != nil {
			return fmt.Errorf("name the terminal: %w", err)
		}
		name := fmt.Sprintf("/dev/pts/%d", n)
		sfd, err := unix.Open(name, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open the terminal's other end: %w", err)
		}
		slave = os.NewFile(uintptr(sfd), name)
		return nil
	})
	if err == nil {
		err = setSize(master, s)
	}
	if err != nil {
		for _, f := range []*os.File{master, slave} {
			if f != nil {
				f.Close()
			}
		}
		return nil, nil, err
	}
	return master, slave, nil
}

func setSize(master *os.File, s wire.Size) error {
	raw, err := master.SyscallConn()
	if err != nil {
		return fmt.Errorf("reach the terminal: %w", err)
	}
	var set error
	if err := raw.Control(func(fd uintptr) {
		set = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: s.Rows, Col: s.Cols})
	}); err != nil {
		set = err
	}
	if set != nil {
		return fmt.Errorf("set the terminal's size: %w", set)
	}
	return nil
}
