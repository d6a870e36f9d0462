//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/enclave-run/enclave/internal/wire"
)

// kernels are what the guest is tested on: its promises are the same on each.
func kernels() map[string]func(testing.TB) *sandbox {
	return map[string]func(testing.TB) *sandbox{
		"namespaces": func(t testing.TB) *sandbox { return newSandbox(t) },
		"gvisor":     newGVisor,
		"machine":    newMachine,
	}
}

// onEach runs test in a new sandbox on each kernel.
func onEach(t *testing.T, test func(t *testing.T, s *sandbox)) {
	t.Helper()
	for name, start := range kernels() {
		t.Run(name, func(t *testing.T) { test(t, start(t)) })
	}
}

func check(t *testing.T, want, got outcome) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestLanguagesRun(t *testing.T) {
	onEach(t, func(t *testing.T, s *sandbox) {
		t.Logf("hello: %+v", s.hello)
		if !s.hello.IPv6 {
			t.Error("no IPv6")
		}
		for name, c := range map[string]struct {
			request wire.StartRequest
			want    outcome
		}{
			"python": {wire.StartRequest{Language: "python", Code: "print('hi'); enclave.result({'answer': 285})"},
				outcome{Stdout: "hi\n", Result: `{"answer":285}`}},
			"node": {wire.StartRequest{Language: "node", Code: "console.log('hi'); enclave.result({answer: 285}); process.exit(3)"},
				outcome{Stdout: "hi\n", Result: `{"answer":285}`, Code: 3}},
			"node with imports": {wire.StartRequest{Language: "node", Code: "import os from 'node:os';\nenclave.result(await Promise.resolve(typeof os.EOL));"},
				outcome{Result: `"string"`}},
			"bash": {wire.StartRequest{Language: "bash", Code: "echo hi; enclave-result '{\"answer\":285}'; exit 4"},
				outcome{Stdout: "hi\n", Result: `{"answer":285}`, Code: 4}},
			"argv": {wire.StartRequest{Argv: []string{"echo", "hi"}}, outcome{Stdout: "hi\n"}},
		} {
			t.Run(name, func(t *testing.T) { check(t, c.want, s.run(t, c.request)) })
		}
	})
}

func TestWorkloadIsConfined(t *testing.T) {
	onEach(t, func(t *testing.T, s *sandbox) {
		got := s.python(t, `
import os, socket
status = dict(l.split(":", 1) for l in open("/proc/self/status").read().splitlines())
for k in "CapInh", "CapPrm", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp":
    print(k, status.get(k, "absent").strip())
print("ids", os.getresuid(), os.getresgid(), os.getgroups())
print("session", os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid())
print("umask", oct(os.umask(0)), "cwd", os.getcwd())
print("env", sorted(os.environ.items()))
print("stdin", os.readlink("/proc/self/fd/0") if os.path.exists("/proc/self/fd/0") else None, repr(open(0).read()))
def family(f, t=socket.SOCK_STREAM):
    try:
        socket.socket(f, t).close()
        return "open"
    except OSError as e:
        return e.errno
print("families", {f: family(f) for f in (1, 2, 10)}, family(16, socket.SOCK_RAW))
print("refused", {f: family(f) for f in (3, 4, 5, 9, 15, 21, 31, 38, 40, 44)}, family(17, socket.SOCK_RAW))
try: print(socket.socketpair(40)[0])
except OSError as e: print("pair", e.errno)
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall(425, 8, 0); print("uring", ctypes.get_errno())
`)
		path := workloadPath
		want := outcome{Stdout: `CapInh 0000000000000000
CapPrm 0000000000000000
CapEff 0000000000000000
CapBnd 0000000000000000
NoNewPrivs 1
Seccomp 2
ids (1000, 1000, 1000) (1000, 1000, 1000) []
session True True
umask 0o22 cwd /work
env [('HOME', '/work'), ('LANG', 'C.UTF-8'), ('PATH', '` + path + `'), ('TMPDIR', '/tmp')]
stdin /dev/null ''
families {1: 'open', 2: 'open', 10: 'open'} open
refused {3: 97, 4: 97, 5: 97, 9: 97, 15: 97, 21: 97, 31: 97, 38: 97, 40: 97, 44: 97} 97
pair 97
uring 38
`}
		if got.Stderr != "" {
			t.Error(got.Stderr)
		}
		// gVisor's status has neither of these lines; what they say is tested by
		// the refusals.
		absent := func(s string) string {
			return strings.NewReplacer("NoNewPrivs absent", "NoNewPrivs 1", "CapBnd absent", "CapBnd 0000000000000000").Replace(s)
		}
		got.Stdout = absent(got.Stdout)
		check(t, want, got)
	})
}

// What the workload inherits and reaches of the guest is nothing.
func TestGuestIsOutOfReach(t *testing.T) {
	onEach(t, func(t *testing.T, s *sandbox) {
		got := s.bash(t, `
ls /proc/self/fd | wc -l
for f in environ mem maps fd/0 root; do cat /proc/1/$f >/dev/null 2>&1 && echo "read $f"; done
kill -9 1 2>/dev/null && echo killed
kill -s STOP 1 2>/dev/null && echo stopped
echo x 2>/dev/null > /run/enclave/main.sh && echo "wrote the code"
rm -f /run/enclave/result.sock 2>/dev/null && [ ! -e /run/enclave/result.sock ] && echo "removed the socket"
touch /.enclave/x 2>/dev/null && echo "wrote beside the guest"
ip link set enclave0 down 2>/dev/null && echo "took the network down"
true`)
		// 0, 1, 2 and the one with which ls reads the directory; bash, which has
		// 255 open on the script, closes that for what it starts.
		check(t, outcome{Stdout: "4\n"}, got)
	})
}

func TestExits(t *testing.T) {
	onEach(t, func(t *testing.T, s *sandbox) {
		for name, c := range map[string]struct {
			code string
			want outcome
		}{
			"a code":               {"exit 42", outcome{Code: 42}},
			"a signal is 128 more": {"kill -TERM $$", outcome{Code: 143, Signal: 15}},
			"a kill":               {"kill -KILL $$", outcome{Code: 137, Signal: 9}},
			"an orphan that holds stdout holds nothing up": {
				"sleep 1000 & setsid sleep 1000 & echo out; exit 5", outcome{Stdout: "out\n", Code: 5}},
			"the last output of children counts": {
				"mkfifo wrote; (echo child; echo > wrote; sleep 1000) & read -r < wrote; exit 6",
				outcome{Stdout: "child\n", Code: 6}},
		} {
			t.Run(name, func(t *testing.T) { check(t, c.want, s.bash(t, c.code)) })
		}
		left := s.bash(t, `for p in /proc/[0-9]*; do tr '\0' ' ' 2>/dev/null < $p/cmdline; done 2>/dev/null | grep -c '[s]leep'; true`)
		check(t, outcome{Stdout: "0\n"}, left)
	})
}

func TestOutputIsWholeHoweverLarge(t *testing.T) {
	onEach(t, func(t *testing.T, s *sandbox) {
		const size = 20 << 20
		got := s.python(t, fmt.Sprintf(`
import sys
for i in range(%d // (1 << 16)):
    sys.stdout.write(chr(97 + i %% 26) * (1 << 16))
sys.stderr.write("e" * (1 << 20))
`, size))
		if len(got.Stdout) != size || got.Stderr != strings.Repeat("e", 1<<20) || got.Code != 0 {
			t.Fatalf("got %d bytes of stdout, %d of stderr, code %d", len(got.Stdout), len(got.Stderr), got.Code)
		}
		for i := range size >> 16 {
			if block := got.Stdout[i<<16 : (i+1)<<16]; block != strings.Repeat(string(rune(97+i%26)), 1<<16) {
				t.Fatalf("block %d is not what was written", i)
			}
		}
	})
}

func TestResults(t *testing.T) {
	onEach(t, func(t *testing.T, s *sandbox) {
		try := func(expr string) string {
			return "try: enclave.result(" + expr + ")\nexcept Exception as e: print(type(e).__name__, e)\n"
		}
		for name, c := range map[string]struct {
			code string
			want outcome
		}{
			"the first valid one wins": {try("1") + try("2"),
				outcome{Result: "1", Stdout: "RuntimeError enclave.result: a result was given already: the first one counts\n"}},
			"an invalid one does not count": {try("float('nan')") + try("object()") + try("'x' * (1 << 20)") + try("[1, 'ü', None, 1.5, True]"),
				outcome{Result: `[1,"ü",null,1.5,true]`, Stdout: "ValueError Out of range float values are not JSON compliant\n" +
					"TypeError enclave.result: a value of type object can't be given as JSON\n" +
					"ValueError enclave.result: the result is larger than 1048576 bytes\n"}},
			"json imported or not": {"import json\n" + try("object()") + try("{'a': (1, 2)}"),
				outcome{Result: `{"a":[1,2]}`, Stdout: "TypeError enclave.result: a value of type object can't be given as JSON\n"}},
			"the largest": {"enclave.result('x' * ((1 << 20) - 2))", outcome{Result: `"` + strings.Repeat("x", 1<<20-2) + `"`}},
			"a cycle":     {"l = []; l.append(l)\n" + try("l"), outcome{Stdout: "ValueError Circular reference detected\n"}},
			"too deep":    {"l = []\nfor _ in range(300): l = [l]\n" + try("l"), outcome{Stdout: "ValueError enclave.result: the result is nested deeper than 256\n"}},
			"from a child": {"import subprocess, sys\nsubprocess.run(['enclave-result', '7'], check=True)",
				outcome{Result: "7"}},
			"from a child that left the session": {"import subprocess\nsubprocess.run(['setsid', '--wait', 'enclave-result', '8'], check=True)",
				outcome{Result: "8"}},
			"raw bytes": {`
import socket
def raw(b):
    s = socket.socket(socket.AF_UNIX); s.connect("/run/enclave/result.sock"); s.sendall(b); s.shutdown(1)
    print(s.makefile("rb").read()[4:].decode())
raw(b"\xff\xff\xff\xff")
raw(b"\x00\x10\x00\x01")
raw(b"\x00\x00\x00\x03NaN")
raw(b"\x00\x00\x00\x03\"\xff\"")
raw(b"\x00\x00\x00\x00")
raw(b"\x00\x00\x00\x05{}")
raw(b"\x00\x00\x00\x042 2 ")
raw(b"\x00")
raw(b"\x00\x00\x00\x02{}trailing")
`, outcome{Result: "{}", Stdout: "the result is larger than 1048576 bytes\nthe result is larger than 1048576 bytes\n" +
				"the result is not valid JSON: no JSON value at byte 0\nthe result is not valid JSON: invalid UTF-8 at byte 1\nthe result is not valid JSON: the text ends early at byte 0\n" +
				"read the result: unexpected EOF\nthe result is not valid JSON: data after the value at byte 2\nread the result's length: unexpected EOF\n\n"}},
		} {
			t.Run(name, func(t *testing.T) { check(t, c.want, s.python(t, c.code)) })
		}
		t.Run("bash hears why", func(t *testing.T) {
			check(t, outcome{Stdout: "1\n", Stderr: "enclave-result: the result is not valid JSON: no JSON value at byte 0\n", Result: "[2]"},
				s.bash(t, "enclave-result nope; echo $?; echo '[2]' | enclave-result"))
		})
		t.Run("node hears why", func(t *testing.T) {
			check(t, outcome{Result: "1", Stdout: "Error: enclave.result: a result was given already: the first one counts\n" +
				"TypeError: enclave.result: a value of type undefined can't be given as JSON\n"},
				s.node(t, "enclave.result(1); try { enclave.result(2) } catch (e) { console.log(String(e)) } try { enclave.result() } catch (e) { console.log(String(e)) }"))
		})
	})
}

// Code must not notice that it is run by a shim.
func TestPythonLooksLikeAScript(t *testing.T) {
	onEach(t, func(t *testing.T, s *sandbox) {
		if err := s.WriteFile(t.Context(), "helper.py", 0o644, strings.NewReader("x = 5\n")); err != nil {
			t.Fatal(err)
		}
		got := s.python(t, `# -*- coding: utf-8 -*-
from __future__ import annotations
import sys, pickle, helper
class C: pass
assert pickle.loads(pickle.dumps(C())).__class__ is C
print(__name__, sys.argv, __file__ == sys.argv[0], sys.path[0], helper.x, 'json' in sys.modules, '_source' in globals())
def f():
    raise ValueError("boom")
f()
`)
		check(t, outcome{
			Stdout: "__main__ ['/run/enclave/main.py'] True /work 5 False False\n",
			Stderr: `Traceback (most recent call last):
  File "/run/enclave/main.py", line 9, in <module>
    f()
  File "/run/enclave/main.py", line 8, in f
    raise ValueError("boom")
ValueError: boom
`, Code: 1}, got)
		got = s.python(t, "x = (\n")
		check(t, outcome{Code: 1, Stderr: "  File \"/run/enclave/main-2.py\", line 1\n    x = (\n        ^\nSyntaxError: '(' was never closed\n"}, got)
		check(t, outcome{Code: 9}, s.python(t, "import sys; sys.exit(9)"))
	})
}

func TestNodeLooksInWork(t *testing.T) {
	onEach(t, func(t *testing.T, s *sandbox) {
		if err := s.WriteFile(t.Context(), "helper.js", 0o644, strings.NewReader("exports.x = 5")); err != nil {
			t.Fatal(err)
		}
		got := s.node(t, "console.log(require('./helper').x, require.main === module, __dirname, process.argv.length)")
		check(t, outcome{Stdout: "5 true /work 2\n"}, got)
		got = s.node(t, "// first\nthrow new Error('boom')")
		if got.Code != 1 || !strings.Contains(got.Stderr, ".js:2\nthrow new Error('boom')") {
			t.Errorf("%+v", got)
		}
	})
}

func TestMissingInterpreterIsNamed(t *testing.T) {
	s := newSandbox(t, "HIDE=/usr/bin/node")
	_, err := s.Start(t.Context(), wire.StartRequest{Language: "node", Code: "1"})
	if !errors.Is(err, wire.ErrNoInterpreter) || !strings.Contains(err.Error(), "no interpreter for node") {
		t.Errorf("Start: %v", err)
	}
	for name, r := range map[string]wire.StartRequest{
		"language":  {Language: "perl"},
		"nothing":   {},
		"both":      {Language: "bash", Argv: []string{"true"}},
		"only code": {Code: "1", Argv: []string{"true"}},
		"env":       {Argv: []string{"true"}, Env: map[string]string{"A=B": "c"}},
	} {
		var refused *wire.CallError
		if _, err := s.Start(t.Context(), r); !errors.As(err, &refused) || refused.Code != wire.CodeBadRequest {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := s.Start(t.Context(), wire.StartRequest{Argv: []string{"no-such-program"}}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no such program: %v", err)
	}
	check(t, outcome{Stdout: "v\n"}, s.run(t, wire.StartRequest{Argv: []string{"printenv", "A"}, Env: map[string]string{"A": "v"}}))
}

func TestInputSignalsAndTerminals(t *testing.T) {
	onEach(t, func(t *testing.T, s *sandbox) {
		ctx := t.Context()
		t.Run("input", func(t *testing.T) {
			p, err := s.Start(ctx, wire.StartRequest{Argv: []string{"cat"}, Stdin: true})
			if err != nil {
				t.Fatal(err)
			}
			want := strings.Repeat("0123456789", 30000)
			sent := make(chan error, 1)
			go func() {
				err := p.Input(ctx, []byte(want))
				sent <- errors.Join(err, p.CloseStdin(ctx))
			}()
			got := collect(t, p)
			if err := <-sent; err != nil {
				t.Error(err)
			}
			check(t, outcome{Stdout: want}, got)
			if err := p.Input(ctx, []byte("x")); !errors.Is(err, wire.ErrProcessExited) {
				t.Errorf("input after the exit: %v", err)
			}
		})
		t.Run("signal", func(t *testing.T) {
			p, err := s.Start(ctx, wire.StartRequest{Argv: []string{"sleep", "1000"}})
			if err != nil {
				t.Fatal(err)
			}
			list, err := s.Processes(ctx)
			if err != nil || len(list) != 1 || list[0].ID != p.ID() {
				t.Errorf("processes: %+v, %v", list, err)
			}
			if err := p.Signal(ctx, 15); err != nil {
				t.Error(err)
			}
			check(t, outcome{Code: 143, Signal: 15}, collect(t, p))
			if err := p.Signal(ctx, 15); !errors.Is(err, wire.ErrProcessExited) {
				t.Errorf("signal after the exit: %v", err)
			}
		})
		t.Run("terminal", func(t *testing.T) {
			p, err := s.Start(ctx, wire.StartRequest{
				Argv:     []string{"bash", "-c", "read -r; stty size < /dev/tty; read -r; stty size; tty"},
				Terminal: &wire.Size{Rows: 10, Cols: 20},
			})
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(p.Input(ctx, []byte("\n"))); err != nil {
				t.Error(err)
			}
			var seen bytes.Buffer
			for !strings.Contains(seen.String(), "10 20") {
				e, err := p.Next()
				if err != nil {
					t.Fatalf("%v after %q", err, seen.String())
				}
				seen.Write(e.Data)
			}
			if err := errors.Join(p.Resize(ctx, wire.Size{Rows: 30, Cols: 40}), p.Input(ctx, []byte("\n"))); err != nil {
				t.Error(err)
			}
			if got := collect(t, p); !strings.Contains(got.Terminal, "30 40\r\n/dev/pts/") || got.Code != 0 {
				t.Errorf("%+v", got)
			}
		})
		t.Run("beside another process", func(t *testing.T) {
			// The exit of one must not end the other.
			p, err := s.Start(ctx, wire.StartRequest{Argv: []string{"cat"}, Stdin: true})
			if err != nil {
				t.Fatal(err)
			}
			// What it leaves behind is killed all the same.
			check(t, outcome{Code: 1}, s.bash(t, "sleep 1000 & (sleep 1000 &) ; exit 1"))
			sleepers := `for p in /proc/[0-9]*; do tr '\0' ' ' 2>/dev/null < $p/cmdline; done 2>/dev/null | grep -c '[s]leep'; true`
			check(t, outcome{Stdout: "0\n"}, s.bash(t, sleepers))
			follower, err := s.Connect(ctx, p.ID())
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(p.Input(ctx, []byte("still there")), p.CloseStdin(ctx)); err != nil {
				t.Error(err)
			}
			check(t, outcome{Stdout: "still there"}, collect(t, p))
			check(t, outcome{Stdout: "still there"}, collect(t, follower))
		})
	})
}

// A core that stops reading makes the process wait; one that hangs up does not.
func TestOutputThatNobodyReads(t *testing.T) {
	s := newSandbox(t)
	p, err := s.Start(t.Context(), wire.StartRequest{Argv: []string{"bash", "-c", "yes | head -c 8000000; enclave-result 1; echo done > /work/done; sleep 1000"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	follower, err := s.Connect(t.Context(), p.ID())
	if err != nil {
		t.Fatal(err)
	}
	for {
		e, err := follower.Next()
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind == wire.Result {
			break
		}
	}
	if err := follower.Signal(t.Context(), 9); err != nil {
		t.Fatal(err)
	}
	collect(t, follower)
}

func TestGuestEndsWhenTheCoreHangsUp(t *testing.T) {
	for name, hangUp := range map[string]func(*sandbox) error{
		"packets": func(s *sandbox) error { return s.packets.Close() },
		"control": func(s *sandbox) error { return s.control.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			s := newSandbox(t)
			if _, err := s.Start(t.Context(), wire.StartRequest{Argv: []string{"sleep", "1000"}}); err != nil {
				t.Fatal(err)
			}
			if err := hangUp(s); err != nil {
				t.Fatal(err)
			}
			<-s.ended
			if s.code != 1 {
				t.Errorf("exit %d, want 1", s.code)
			}
		})
	}
}

// On the host, killing everything but itself is not what the guest may do.
func TestGuestRefusesToBeAnythingButInit(t *testing.T) {
	guest, err := buildGuest()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cmd := exec.CommandContext(ctx, guest, "unix:/nonexistent")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Run(); err == nil || !strings.Contains(stderr.String(), "not started as PID 1") {
		t.Errorf("%v: %s", err, stderr.String())
	}
}
