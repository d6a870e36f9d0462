package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/jsontext"
)

// hostileText is what a terminal would obey or hide, as text; hostileBytes is
// every byte besides.
const hostileText = "h\x1b]52;c;cm0=\x07\x1b[31m\x1b[2J\x1bP\x1b\\\u009b2J\u009d0;t\u009c\x85\u202e\u2066\u200b\u2028\x7f\x08\U000e0041\ufe0f\u00ad\rZ"

func hostileBytes() []byte {
	b := []byte(hostileText + "\xe2\x80")
	for c := range 256 {
		b = append(b, byte(c), '[', 'x', byte(c), byte(c))
	}
	return append(b, "\n\xe2"...) // and the start of a character, at the end
}

// obeyed is the oracle: what a terminal in UTF-8 would obey or hide in b. Lines end
// with "\n", since the terminal of these tests changes nothing.
func obeyed(b []byte) error {
	for i := 0; i < len(b); {
		r, n := utf8.DecodeRune(b[i:])
		switch {
		case r == utf8.RuneError && n <= 1:
			return fmt.Errorf("byte %d, %#x, is not UTF-8: …%q", i, b[i], b[max(0, i-40):i+1])
		case r == '\n', r == '\t':
		case r < 0x20, 0x7f <= r && r < 0xa0, r == 0xad, r == 0x61c, 0x200b <= r && r < 0x2010, 0x2028 <= r && r < 0x202f, 0x2060 <= r && r < 0x2070,
			0xfe00 <= r && r < 0xfe10, r == 0xfeff, r >= 0xe0000:
			return fmt.Errorf("%U at byte %d: …%q", r, i, b[max(0, i-40):i+n])
		}
		i += n
	}
	return nil
}

// A pty is a pseudo-terminal (pty(7)) whose output nothing changes.
type pty struct {
	terminal *os.File
	out      chan []byte // one message: all that was written, once nobody has it open
}

func openPTY(t *testing.T) *pty {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	master := os.NewFile(uintptr(fd), "/dev/ptmx")
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	// TIOCGPTPEER finds it in whatever directory terminals are (ioctl_tty(2)).
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		t.Fatal(errno)
	}
	slave := int(n)
	mode, err := unix.IoctlGetTermios(slave, unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	mode.Oflag &^= unix.OPOST
	if err := unix.IoctlSetTermios(slave, unix.TCSETS, mode); err != nil {
		t.Fatal(err)
	}
	p := &pty{os.NewFile(uintptr(slave), "pts"), make(chan []byte, 1)}
	go func() {
		defer master.Close()
		b, err := io.ReadAll(master)
		if err != nil && !errors.Is(err, syscall.EIO) { // EIO is the end
			b = append(b, err.Error()...)
		}
		p.out <- b
	}()
	return p
}

// on runs the program with its streams on terminals of their own, or on pipes, and
// returns what came out of each.
func on(t *testing.T, outTTY, errTTY bool, env []string, args ...string) (out, errs []byte, err error) {
	t.Helper()
	c := enclaveCommand(t, env, args...)
	c.Dir = t.TempDir()
	var ends [2]func() []byte
	for i, tty := range []bool{outTTY, errTTY} {
		var w io.Writer
		if tty {
			p := openPTY(t)
			w, ends[i] = p.terminal, func() []byte { p.terminal.Close(); return <-p.out }
		} else {
			b := new(bytes.Buffer)
			w, ends[i] = b, b.Bytes
		}
		if i == 0 {
			c.Stdout = w
		} else {
			c.Stderr = w
		}
	}
	err = c.Run()
	return ends[0](), ends[1](), err
}

// hostileServer is a control plane that says hostile things wherever it may say
// anything, and fails what is called "refused".
func hostileServer(t *testing.T) []string {
	t.Helper()
	const h = hostileText
	raw, _ := json.Marshal(h)
	s := enclave.Session{
		ID: h, OrgID: h, CreatedBy: h, Phase: enclave.Succeeded, Outcome: enclave.Succeeded, KillReason: h, Language: h, Backend: h, Isolation: h,
		Egress: enclave.Egress{Mode: h, Allow: []string{h}}, Labels: map[string]string{h: h}, CreatedAt: time.Unix(1, 0),
	}
	code := 0
	result := enclave.Result{ExitCode: &code, Stdout: h, Stderr: h, JSON: raw, Denials: []enclave.Denial{{Host: h, Protocol: h, Reason: h, Count: 1}}, Truncated: true}
	whole := s
	whole.Result = &result
	data, _ := json.Marshal(map[string]string{"host": h, "protocol": h, "reason": h, "backend": h, "isolation": h, h: h})
	event := enclave.Event{Session: h, Seq: 1, Type: "egress_denied", Data: data, Hash: h}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var v any
		switch path := r.URL.Path; {
		case strings.Contains(path, "refused"):
			w.WriteHeader(http.StatusConflict)
			v = map[string]any{"code": h, "title": h, "detail": h, "status": 409}
		case strings.HasSuffix(path, "/stream"):
			w.Header().Set("Content-Type", "text/event-stream")
			send := func(kind string, v any) {
				b, _ := json.Marshal(v)
				fmt.Fprintf(w, "event: %s\ndata: %s\n\n", kind, b)
			}
			// Split within a character and within a sequence.
			for _, kind := range []string{"stdout", "stderr"} {
				for b := hostileBytes(); len(b) > 0; b = b[min(7, len(b)):] {
					send(kind, map[string]string{"base64": base64.StdEncoding.EncodeToString(b[:min(7, len(b))])})
				}
			}
			send("audit", event)
			send("result", result)
			send("end", struct{}{})
			return
		case strings.HasSuffix(path, "/result"):
			v = result
		case strings.HasSuffix(path, "/audit"):
			v = enclave.Page[enclave.Event]{Items: []enclave.Event{event}}
		case path == "/v1/sessions" && r.Method == "GET":
			v = enclave.Page[enclave.Session]{Items: []enclave.Session{s}}
		case strings.HasPrefix(path, "/v1/sessions"):
			v = whole
		case path == "/v1/queue":
			v = enclave.Queue{Yours: enclave.OwnQueue{Waiting: 1, Items: []enclave.QueuedSession{{ID: h, Position: 1}}}}
		case path == "/v1/usage":
			v = enclave.Page[enclave.Usage]{Items: []enclave.Usage{{Day: h}}}
		case path == "/v1/keys" && r.Method == "GET":
			v = enclave.Page[enclave.Key]{Items: []enclave.Key{{ID: h, OrgID: h, User: h, Role: h, Scopes: []string{h}}}}
		case path == "/v1/keys":
			v = enclave.CreatedKey{Key: enclave.Key{ID: h, OrgID: h, User: h, Role: h}, Plaintext: h}
		default:
			v = map[string]string{"publicKey": h, "algorithm": h, "checkpoint": h, "token": h, "backend": h}
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(v)
	}))
	t.Cleanup(server.Close)
	return []string{"ENCLAVE_BASE_URL=" + server.URL, "ENCLAVE_API_KEY=ek_00_00", "NO_COLOR=1", "LC_ALL=C.UTF-8"}
}

// shown is how the commands that show what a server says are called.
var shown = map[string][][]string{
	"enclave run":            {{"-c", "x"}, {"--quiet", "-c", "x"}, {"--json", "-c", "x"}},
	"enclave session list":   {{}, {"--json"}},
	"enclave session show":   {{"s"}, {"s", "--json"}, {"refused"}},
	"enclave session result": {{"s"}, {"s", "--json"}, {"refused"}},
	"enclave session logs":   {{"s"}, {"s", "--json"}, {"s", "--follow"}, {"refused"}},
	"enclave session queue":  {{}, {"--json"}},
	"enclave session rm":     {{"s", "--json"}, {"refused"}},
	"enclave audit show":     {{"s"}, {"s", "--json"}, {"refused"}},
	"enclave audit export":   {{"s"}, {"refused"}},
	"enclave audit key":      {{}},
	"enclave usage":          {{}, {"--json"}},
	"enclave webhook key":    {{}, {"--json"}},
	"enclave key list":       {{}, {"--json"}},
	"enclave key create":     {{"--user", "u"}, {"--user", "u", "--json"}},
	"enclave key revoke":     {{"refused"}},
}

// Every command, whatever it is told by its server or its caller, is inert on a
// terminal.
func TestEveryCommandIsInertOnATerminal(t *testing.T) {
	t.Parallel()
	env := append(hostileServer(t), "ENCLAVE_STATE="+state(t).Path)
	check := func(args ...string) {
		t.Helper()
		out, errs, err := on(t, true, true, env, args...)
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		if len(out)+len(errs) == 0 && err != nil {
			t.Errorf("%q said nothing: %v", args, err)
		}
		for _, b := range [][]byte{out, errs} {
			if err := obeyed(b); err != nil {
				t.Errorf("%q: %v", args, err)
			}
		}
	}
	all := 0
	leaves(newProgram().root(), func(c *cobra.Command) {
		all++
		words := strings.Fields(c.CommandPath())[1:]
		check(append(words, "--"+hostileText)...)
		check(append(words, "--help")...)
		if c.Name() != "bench" && c.Args != nil { // each refuses so many words, or a file that is not there
			check(append(words, hostileText, hostileText+"2", "/"+hostileText)...)
		}
		for _, args := range shown[c.CommandPath()] {
			check(append(words, args...)...)
		}
	})
	if all < 30 {
		t.Errorf("only %d commands were found: the walk is broken", all)
	}
	check(hostileText)
	for _, more := range []string{"--state=/" + hostileText, "--backend=" + hostileText, "--docker-host=" + hostileText} {
		check(more, "version")
	}
}

// What goes into a pipe is exact, beside a terminal too, and to a terminal if it
// is asked for.
func TestBytesIntoAPipeAreExact(t *testing.T) {
	t.Parallel()
	env := hostileServer(t)
	want := hostileBytes()
	for _, tc := range []struct {
		outTTY, errTTY bool
		args           []string
	}{
		{false, false, []string{"session", "logs", "s"}},
		{false, true, []string{"session", "logs", "s"}},
		{true, false, []string{"session", "logs", "s"}},
		{true, true, []string{"session", "logs", "s", "--raw"}},
		{false, false, []string{"run", "--quiet", "-c", "x"}},
		{true, true, []string{"run", "--quiet", "--raw", "-c", "x"}},
	} {
		out, errs, err := on(t, tc.outTTY, tc.errTTY, env, tc.args...)
		if err != nil {
			t.Errorf("%v: %v", tc, err)
		}
		raw := tc.args[len(tc.args)-1] == "--raw" || len(tc.args) > 2 && tc.args[2] == "--raw"
		for _, s := range []struct {
			tty bool
			got []byte
		}{{tc.outTTY, out}, {tc.errTTY, errs}} {
			if exact := bytes.HasPrefix(s.got, want); exact != (!s.tty || raw) {
				t.Errorf("%v, on a terminal %v: exact is %v: %q", tc.args, s.tty, exact, s.got)
			}
		}
	}
}

// A terminal's JSON means what a pipe's does.
func TestJSONOnATerminalIsTheSame(t *testing.T) {
	t.Parallel()
	env := hostileServer(t)
	for _, args := range [][]string{{"session", "show", "s", "--json"}, {"session", "list", "--json"}, {"run", "--json", "-c", "x"}, {"audit", "show", "s", "--json"}} {
		var seen [2]any
		for i, tty := range []bool{false, true} {
			out, _, err := on(t, tty, false, env, args...)
			if err != nil {
				t.Fatalf("%v: %v", args, err)
			}
			if err := json.Unmarshal(out, &seen[i]); err != nil {
				t.Fatalf("%v on a terminal, %v: %v: %q", args, tty, err, out)
			}
		}
		if fmt.Sprint(seen[0]) != fmt.Sprint(seen[1]) {
			t.Errorf("%v: %q into a pipe, %q on a terminal", args, seen[0], seen[1])
		}
	}
}

// What reads a pipe, such as jq -r or less -R, shows it on a terminal.
func TestJSONSteersNoTerminalWhereverItGoes(t *testing.T) {
	t.Parallel()
	env := hostileServer(t)
	calls := [][]string{{"enclave", "session", "result", "s"}}
	for command, all := range shown {
		for _, args := range all {
			if slices.Contains(args, "--json") {
				calls = append(calls, append(strings.Fields(command), args...))
			}
		}
	}
	if len(calls) < 10 {
		t.Errorf("only %d calls print JSON", len(calls))
	}
	for _, args := range calls {
		out, _, err := on(t, false, false, env, args[1:]...)
		if err != nil {
			t.Errorf("%v: %v", args, err)
		}
		if i := bytes.IndexFunc(out, jsontext.Steers); i >= 0 {
			t.Errorf("%v prints %q", args, out[max(0, i-40):i+4])
		}
		if !bytes.Contains(out, []byte(`\u009b`)) {
			t.Errorf("%v does not say what it was told: %q", args, out)
		}
	}
}

// What a shell completes it writes on the terminal itself.
func TestCompletionsAreInert(t *testing.T) {
	t.Parallel()
	out, _, err := on(t, false, false, hostileServer(t), "__complete", "session", "show", "")
	if err != nil {
		t.Fatal(err)
	}
	if err := obeyed(out); err != nil {
		t.Error(err)
	}
}

// The streams of the process are opened in one place: a command that writes around
// it would write to a terminal what it likes.
func TestNoCommandWritesAroundTheProgramsStreams(t *testing.T) {
	files := 0
	look := func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return err
		}
		files++
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.SelectorExpr:
				x, ok := n.X.(*ast.Ident)
				if !ok {
					return true
				}
				switch path := x.Name + "." + n.Sel.Name; path {
				case "os.Stdout", "os.Stderr":
					if name != "main.go" {
						t.Errorf("%s: %s is for main.go alone", name, path)
					}
				case "fmt.Print", "fmt.Println", "fmt.Printf", "os.NewFile", "syscall.Write", "unix.Write":
					if path != "os.NewFile" || name == "main.go" {
						t.Errorf("%s: %s writes around the program's streams", name, path)
					}
				}
			case *ast.CallExpr:
				if x, ok := n.Fun.(*ast.Ident); ok && (x.Name == "print" || x.Name == "println") {
					t.Errorf("%s: %s writes around the program's streams", name, x.Name)
				}
			}
			return true
		})
		return nil
	}
	if err := errors.Join(filepath.WalkDir(".", look), filepath.WalkDir("../../internal/ui", look)); err != nil {
		t.Fatal(err)
	}
	if files < 50 {
		t.Errorf("only %d files were read: the walk is broken", files)
	}
}

// Colours and progress are our own, and work.
func TestOurOwnStylesReachATerminal(t *testing.T) {
	t.Parallel()
	env := append(hostileServer(t), "NO_COLOR=", "ENCLAVE_BASE_URL=", "ENCLAVE_STATE="+filepath.Join(t.TempDir(), "none"))
	out, _, err := on(t, true, true, env, "doctor", "--quick")
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if !bytes.Contains(out, []byte("\x1b[32m")) {
		t.Errorf("doctor has no colours: %q", out)
	}
	for _, s := range []string{"0", "2", "32", "33", "1;31"} {
		out = bytes.ReplaceAll(out, []byte("\x1b["+s+"m"), nil)
	}
	if err := obeyed(out); err != nil {
		t.Error(err)
	}
}
