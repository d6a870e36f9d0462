package corpus

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/enclave-run/enclave"
)

// resultFrame is Python that gives bytes as a result as the library does, framed by
// hand: the channel itself is the subject, not the library.
const resultFrame = `
import os, socket, struct, time
def frame(b, n=None):
    s = socket.socket(socket.AF_UNIX); s.connect('/run/enclave/result.sock'); s.settimeout(15)
    try:
        s.sendall(struct.pack('>I', len(b) if n is None else n) + b); s.shutdown(socket.SHUT_WR)
        return s.recv(4096)[4:]
    except OSError as e: return repr(e).encode()
`

// channelAttacks are group G: what the sandbox says to the control plane, which is
// the result's channel, the output and the exit status.
var channelAttacks = []attack{
	{
		id:    "G01",
		smoke: true,
		code: `
print('$ARMED', flush=True)
print('\x1eENCLAVE_RESULT {"answer":42}'); print('##enclave[result]{"answer":42}'); print('{"answer":42}')
print('\0\0\0\x0d{"answer":42}')
`,
		ends:    &ends{},
		judge:   resultIs(""),
		breaks:  spoof,
		control: appending("enclave.result({'answer': 42})"),
	},
	{
		id: "G02",
		code: `
import os, struct
print('$ARMED', flush=True)
b = b'{"answer":42}'
for fd in range(3, 256):
    for m in (struct.pack('>I', len(b)) + b, b + b'\n', b'\x03' + struct.pack('>I', len(b)) + b):
        try: os.write(fd, m); print('wrote to', fd, os.readlink('/proc/self/fd/%d' % fd))
        except OSError: pass
`,
		ends:    &ends{},
		judge:   resultIs(""),
		breaks:  spoof,
		control: appending(resultFrame + "print(frame(b))"),
	},
	{
		id: "G04",
		code: `
print('$ARMED', flush=True)
for v in (1, 2):
    try: enclave.result({'a': v})
    except Exception as e: print(e)
`,
		ends:    &ends{},
		judge:   resultIs(`{"a":1}`),
		breaks:  spoof,
		control: instead("enclave.result({'a': 2})"),
	},
	{
		id:      "G05",
		instead: "there is no descriptor with a frame; the socket of results is sent the same length",
		code: resultFrame + `
print('$ARMED', flush=True)
for n in (0xffffffff, 0x7fffffff, (1 << 20) + 1, 1 << 20): print(frame(b'{"answer":42}', n))
socks = []
for i in range(64):
    s = socket.socket(socket.AF_UNIX); s.setblocking(False)
    try: s.connect('/run/enclave/result.sock'); s.send(struct.pack('>I', 1 << 20))
    except OSError: pass
    socks.append(s)
`,
		ends:    &ends{},
		judge:   resultIs(""),
		bounds:  &bounds{memory: 192 << 20, rss: 64 << 20},
		breaks:  spoof,
		control: appending("for s in socks: s.close()\nprint(frame(b'{\"answer\":42}'))"),
	},
	{
		id:      "G07",
		instead: "a result names no session; one that does is data, of the session whose sandbox sent it",
		prepare: victimOfReplay,
		code: resultFrame + `
print('$ARMED', flush=True)
print(frame(b'{"type":"result","session":"$OTHER","nonce":"$NONCE","json":{"x":1}}'))
`,
		ends:    &ends{},
		judge:   replayIsData,
		breaks:  spoof,
		control: allowing("a neighbour that says it itself", nil).changed(func(a *attack) { a.prepare = victimThatAgrees }),
	},
	{
		id:    "G08",
		smoke: true,
		code: `
import os
print('$ARMED', flush=True)
os.write(1, bytes(range(256)) * 64); os.write(2, b'\xff\xfe\0\xed\xa0\x80')
`,
		lacks:   map[string]string{"simulator": "the model computes no bytes"},
		ends:    &ends{},
		judge:   bytesArePreserved,
		breaks:  spoof,
		control: onBare(bare{}),
	},
	{
		id: "G10",
		code: `
import sys
print('$ARMED', flush=True)
sys.stderr.write('x\n{"type":"egress_allowed","seq":1,"data":{"host":"$NONCE"}}\r\n2026-01-01 session_torn_down $NONCE\n')
`,
		ends:    &ends{},
		judge:   noLineIsForged,
		breaks:  spoof,
		control: onBare(bare{}),
	},
	{
		id:      "G11",
		instead: "there is no console: what answers is the API, which must say that it is not a page and keep each key",
		code: `
print('$ARMED', flush=True)
enclave.result(` + hostileJSON + `)
`,
		ends:    &ends{},
		judge:   answersAreNoPages,
		breaks:  spoof,
		control: control{what: "a server that shows results as a page", run: naivePage},
	},
	{
		id:      "G13",
		instead: "the guest listens on nothing but the socket of results, and asks of the control plane through the one in /.enclave; both, and names that others have used, are tried",
		prepare: helperThatObeys,
		code: `
import glob, os, socket
print('$ARMED', flush=True)
def say(a, m):
    s = socket.socket(socket.AF_UNIX); s.settimeout(1)
    try:
        s.connect(a); s.sendall(m)
        b = s.recv(4096)
        print('ANSWER' if b'$NONCE' in b or b'"ok"' in b else 'heard', ascii(a), b[:200])
    except OSError as e: print(ascii(a), e)
verbs = [b'{"verb":"write_file","path":"/etc/$NONCE","content":"$NONCE"}\n', b'\0\0\0\x10{"verb":"exec"}\n',
         b'POST /process.Start HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n', b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0', b'ENCLAVE\0\1control$NONCE\n']
names = ['/run/enclave/agent.sock', '\0enclave', '\0enclave-guest', '/run/enclave/result.sock'] + glob.glob('/.enclave/*') + glob.glob('/run/enclave/*.sock')
for a in dict.fromkeys(names):
    for m in verbs: say(a, m)
for p in (1024, 1025, 49983, 8080): # vsock and TCP
    try: s = socket.socket(40, socket.SOCK_STREAM); s.connect((2, p)); print('ANSWER vsock', p)
    except OSError as e: print('vsock', p, e)
    try: socket.create_connection(('127.0.0.1', p), 1); print('ANSWER tcp', p)
    except OSError as e: print('tcp', p, e)
`,
		ends: &ends{},
		judge: func(r *run) (all []finding) {
			for line := range strings.Lines(r.stdout()) {
				if strings.HasPrefix(line, "ANSWER") {
					all = append(all, found(spoof, "a verb was answered: %s", strings.TrimSpace(line)))
				}
			}
			return all
		},
		breaks:  spoof,
		control: onBare(bare{sinks: true}),
	},
	{
		id:      "G14",
		instead: "no frame tells of usage; one that would is a result, and the sandbox has used its time",
		code: resultFrame + `
print('$ARMED', flush=True)
print(frame(b'{"type":"usage","cpuMs":0,"memPeak":0}'))
while time.process_time() < 5: pass
`,
		ends:    &ends{},
		judge:   usageIsMetered,
		breaks:  spoof,
		control: instead("pass"),
	},
}

// appending is the control in which the code goes on with what is accepted.
func appending(code string) control {
	return allowing("the channel itself", func(r *run, req *enclave.SessionRequest) { req.Code += "\n" + r.fill(code) })
}

// instead is the control in which the code is what the attack must not be taken for.
func instead(code string) control {
	return allowing("what the attack must not be taken for", func(r *run, req *enclave.SessionRequest) {
		req.Code = "print('" + r.receipt() + "')\n" + r.fill(code)
	})
}

// resultIs wants the session's result to be this JSON, or none.
func resultIs(want string) func(*run) []finding {
	return func(r *run) []finding {
		got := string(r.result.JSON)
		if got == "null" {
			got = ""
		}
		if got != want {
			return []finding{found(spoof, "the result is %.100q, not %q", got, want)}
		}
		return nil
	}
}

// victimOfReplay starts the session that G07 speaks for. It gives a result of its
// own when the attack is over.
func victimOfReplay(r *run) error { return r.victim(`enclave.result('mine')`) }

func victimThatAgrees(r *run) error { return r.victim(`enclave.result({'x': 1})`) }

func (r *run) victim(code string) error {
	ctx := context.Background()
	h, err := r.world.client.Run(ctx, enclave.SessionRequest{Code: "import time\ntime.sleep(2)\n" + code})
	if err != nil {
		return err
	}
	r.vars = append(r.vars, "$OTHER", h.ID())
	r.afterwards(func() {
		got, err := h.Result(ctx)
		if err != nil || string(got.JSON) != `"mine"` {
			r.find(spoof, "the other session's result is %.100q, error %v", got.JSON, err)
		}
		if err := h.Teardown(ctx); err != nil {
			r.find(infra, "tear the other session down: %v", err)
		}
	})
	return nil
}

// replayIsData judges G07: what was sent is the result of who sent it, word for word.
func replayIsData(r *run) []finding {
	var got struct{ Type, Session string }
	if err := json.Unmarshal(r.result.JSON, &got); err != nil || got.Type != "result" || got.Session == r.session.ID || got.Session == "" {
		return []finding{found(vacuous, "the result is %.200q, error %v", r.result.JSON, err)}
	}
	return nil
}

// decoded are the surfaces that have passed the client, which knows which bytes are
// the workload's.
var decoded = map[string]bool{"standard output": true, "standard error": true, "the stream": true}

// bytesArePreserved judges G08: everything that is public is valid UTF-8, and the
// bytes can be had.
func bytesArePreserved(r *run) (all []finding) {
	for _, s := range r.surfaces {
		if (r.bare || !decoded[s.name]) && !utf8.Valid(s.raw) {
			all = append(all, found(spoof, "%s is not UTF-8", s.name))
		}
	}
	want := []byte(r.receipt() + "\n")
	for range 64 {
		for b := range 256 {
			want = append(want, byte(b))
		}
	}
	if !r.bare && !bytes.Equal(r.result.StdoutBytes(), want) {
		all = append(all, found(auditBreak, "of %d bytes of output %d came", len(want), len(r.result.StdoutBytes())))
	}
	return all
}

var forged = regexp.MustCompile(`(?m)^(\{"type":"egress_allowed"|2026-01-01 session_torn_down)`)

// noLineIsForged judges G10: no public text has a line that the workload made up
// and that is not marked as its words. The order of the record is judged always.
func noLineIsForged(r *run) (all []finding) {
	for _, s := range r.surfaces {
		if decoded[s.name] && !r.bare {
			continue
		}
		if forged.Match(s.raw) {
			all = append(all, found(spoof, "%s has a line that the workload made up", s.name))
		}
		if s.name == "the control plane's log" {
			for line := range bytes.Lines(s.raw) {
				if !json.Valid(line) {
					all = append(all, found(spoof, "the log has a line that is not a record: %.100q", line))
				}
			}
		}
	}
	return all
}

const hostileJSON = `{"<img src=x onerror=alert(1)>": "</script><script>alert(1)</script>", "__proto__": {"admin": 1}, "constructor": {"prototype": {"x": 1}}}`

// answersAreNoPages judges G11.
func answersAreNoPages(r *run) (all []finding) {
	if r.bare {
		return nil
	}
	var want, got any
	if err := json.Unmarshal([]byte(hostileJSON), &want); err != nil {
		return []finding{found(infra, "%v", err)}
	}
	if err := json.Unmarshal(r.result.JSON, &got); err != nil || !cmp.Equal(want, got) {
		all = append(all, found(auditBreak, "the result is %.300q, error %v", r.result.JSON, err))
	}
	paths := []string{"/v1/sessions/" + r.session.ID, "/v1/sessions/" + r.session.ID + "/result", "/v1/sessions/" + r.session.ID + "/stream"}
	return append(all, pages(r, r.world.plane.URL, paths)...)
}

// pages finds answers that a browser would take for a page.
func pages(r *run, base string, paths []string) (all []finding) {
	for _, p := range paths {
		req, err := http.NewRequest("GET", base+p, nil)
		if err != nil {
			return []finding{found(infra, "%v", err)}
		}
		req.Header.Set("Authorization", "Bearer "+r.world.plane.Key)
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			return []finding{found(infra, "%v", err)}
		}
		body := readAll(resp.Body)
		resp.Body.Close()
		if !bytes.Contains(body, []byte("alert(1)")) {
			all = append(all, found(vacuous, "GET %s has nothing of it: %.200q", p, body))
		}
		kind := resp.Header.Get("Content-Type")
		if kind != "application/json" && kind != "text/event-stream; charset=utf-8" || resp.Header.Get("X-Content-Type-Options") != "nosniff" {
			all = append(all, found(spoof, "GET %s is %s, sniffing %q: %.200q", p, kind, resp.Header.Get("X-Content-Type-Options"), body))
		}
	}
	return all
}

// naivePage is the control of G11.
func naivePage(_ context.Context, a *attack, w *world) *run {
	r := newControl(a, w, "control: a naive page")
	if r.infra != nil {
		return r
	}
	r.result.Stdout = r.receipt()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("<pre>" + hostileJSON + "</pre>"))
	}))
	defer s.Close()
	for _, f := range pages(r, s.URL, []string{"/"}) {
		r.find(f.class, "%s", f.what)
	}
	return r
}

// helperThatObeys gives the control of G13 what the attack looks for.
func helperThatObeys(r *run) error {
	if !r.bare {
		return nil
	}
	var l net.Listener
	err := r.world.sinks.in(func() (err error) {
		l, err = net.Listen("unix", "@enclave")
		return err
	})
	if err != nil {
		return err
	}
	r.serve(l, func(c net.Conn) {
		_, _ = c.Read(make([]byte, 4096)) // or its end would be a reset
		_, _ = c.Write([]byte(`{"ok":true}`))
	})
	return nil
}

// usageIsMetered judges G14.
// usageIsMetered wants most of the five seconds that the workload counted itself.
// A machine's kernel takes time in which this host ran something else for its
// workload's too.
func usageIsMetered(r *run) []finding {
	for _, ev := range r.events {
		if ev.Type != "usage_metered" {
			continue
		}
		d, err := ev.Detail()
		if err != nil || d.CPUSeconds == nil || *d.CPUSeconds < 2.5 || d.PeakMemoryBytes == nil || *d.PeakMemoryBytes < 1<<20 {
			return []finding{found(spoof, "usage_metered says %s, error %v", ev.Data, err)}
		}
		r.proof("metered on the host: %.2f CPU seconds, %d bytes", *d.CPUSeconds, *d.PeakMemoryBytes)
		return nil
	}
	return []finding{found(auditBreak, "there is no usage_metered")}
}
