package httpapi

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/control"
	"github.com/enclave-run/enclave/internal/session"
)

const ended = `: stream of s-0a1b2c-7

id: p1.o0.e0.a0.r0
event: phase
data: {"phase":"pending"}

id: p2.o0.e0.a0.r0
event: phase
data: {"phase":"running"}

id: p3.o0.e0.a0.r0
event: phase
data: {"phase":"succeeded"}

id: p3.o0.e0.a1.r0
event: audit
data: {"session":"s-0a1b2c-7","seq":1,"ts":"2026-09-01T12:00:00.123456Z","type":"session_created","data":{"caller":"k1","language":"python"},"hash":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}

id: p3.o0.e0.a2.r0
event: audit
data: {"session":"s-0a1b2c-7","seq":2,"ts":"2026-09-01T12:00:00.123456Z","type":"egress_denied","data":{"host":"evil.example.com","protocol":"dns","reason":"not_allowed","count":1},"hash":"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"}

id: p3.o0.e0.a3.r0
event: audit
data: {"session":"s-0a1b2c-7","seq":3,"ts":"2026-09-01T12:00:00.123456Z","type":"workload_exited","data":{"outcome":"succeeded","exitCode":0},"hash":"cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc"}

id: p3.o6.e0.a3.r0
event: stdout
data: {"text":"hello\n"}

id: p3.o6.e4.a3.r0
event: stderr
data: {"base64":"d/9ybg=="}

id: p3.o6.e4.a3.r1
event: result
data: {"exitCode":0,"stdout":"","stderr":"","stdoutBytes":6,"stderrBytes":4,"json":{"answer":285},"truncated":false,"denials":[{"host":"evil.example.com","protocol":"dns","reason":"not_allowed","count":1}],"durationMs":1234}

id: p3.o6.e4.a3.r1
event: end
data: {}

`

func TestStreamOfAnEndedSession(t *testing.T) {
	r := newRig(t)
	resp, body := r.do(t, "GET", "/v1/sessions/s-0a1b2c-7/stream", "VIEWER", nil)
	if ct := resp.Header.Get("Content-Type"); ct != "text/event-stream; charset=utf-8" {
		t.Errorf("content type %q", ct)
	}
	if body != ended {
		t.Errorf("got\n%s\nwant\n%s", body, ended)
	}
}

// Resumed after any event, a stream continues with the next, to the byte.
func TestStreamResumesAfterEachEvent(t *testing.T) {
	r := newRig(t)
	_, all, _ := strings.Cut(ended, "\n\n")
	blocks := strings.SplitAfter(all, "\n\n")
	blocks = blocks[:len(blocks)-1]
	for i, b := range blocks {
		id, _, _ := strings.Cut(strings.TrimPrefix(b, "id: "), "\n")
		_, got := r.do(t, "GET", "/v1/sessions/s-0a1b2c-7/stream", "VIEWER", nil, "Last-Event-ID", id)
		_, got, _ = strings.Cut(got, "\n\n")
		want := strings.Join(blocks[i+1:], "")
		if i == len(blocks)-1 {
			want = b // after the end, the end again
		}
		if got != want {
			t.Errorf("after %s:\n%s\nwant\n%s", id, got, want)
		}
	}
	if resp, _ := r.do(t, "GET", "/v1/sessions/s-0a1b2c-7/stream", "VIEWER", nil, "Last-Event-ID", "p0.o0.e0.a0.r0", "Last-Event-ID", "p1.o0.e0.a0.r0"); resp.StatusCode != 400 {
		t.Errorf("two ids: %d", resp.StatusCode)
	}
}

// One update of much output is several events, each of which can be resumed after.
func TestStreamResumesWithinAnUpdate(t *testing.T) {
	r := newRig(t)
	all := strings.Repeat("ä", 2*maxOutput)
	r.plane.change(func() {
		r.plane.streams["s-0a1b2c-8"].stdout = []byte(all)
		r.finish()
	})
	c := r.client("VIEWER")
	seen, cuts := 0, 0
	for e, err := range c.Stream(t.Context(), "s-0a1b2c-8", "") {
		if err != nil {
			t.Fatal(err)
		}
		if seen += len(e.Output); e.Kind != enclave.StreamStdout {
			continue
		}
		cuts++
		var rest strings.Builder
		for e, err := range c.Stream(t.Context(), "s-0a1b2c-8", e.ID) {
			if err != nil {
				t.Fatal(err)
			}
			rest.Write(e.Output)
		}
		if rest.String() != all[seen:] {
			t.Fatalf("after %s: %d bytes, want %d", e.ID, rest.Len(), len(all)-seen)
		}
	}
	if seen != len(all) || cuts < 4 {
		t.Errorf("%d bytes in %d events", seen, cuts)
	}
}

// What is written while a client follows arrives at once, and its handle has
// the result without asking again.
func TestHandleFollowsALiveSession(t *testing.T) {
	r := newRig(t)
	h := r.client("DEV").Handle("s-0a1b2c-8")
	var got []string
	for e, err := range h.Stream(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		switch e.Kind {
		case enclave.StreamPhase:
			got = append(got, string(e.Phase))
			if e.Phase == enclave.Running {
				r.plane.change(func() { r.plane.streams[h.ID()].stdout = []byte("one") })
			}
		case enclave.StreamStdout:
			got = append(got, "out:"+string(e.Output))
			if string(e.Output) == "one" {
				r.plane.change(func() {
					st := r.plane.streams[h.ID()]
					st.stdout = append(st.stdout, "two\x00\xff"...)
					st.audit = append(st.audit, audit.Event{Session: h.ID(), Seq: 1, Type: audit.WorkloadExited, Hash: strings.Repeat("d", 64)})
				})
			} else {
				r.plane.change(r.finish)
			}
		case enclave.StreamAudit:
			got = append(got, e.Audit.Type)
		case enclave.StreamResult:
			got = append(got, fmt.Sprintf("result:%q of %d", e.Result.Stdout, e.Result.StdoutSize))
		default:
			got = append(got, e.Kind)
		}
	}
	want := []string{"pending", "running", "out:one", "workload_exited", "out:two\x00\xff", "killed", `result:"" of 8`, "end"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// finish ends the running session. It is to be called in change.
func (r *rig) finish() {
	st := r.plane.streams["s-0a1b2c-8"]
	res := session.Collected{Stdout: session.Text{bytes.Clone(st.stdout)}}
	st.phases = append(st.phases, session.Killed)
	st.ended, st.result, st.breakAfter = true, &res, nil
	r.plane.results["s-0a1b2c-8"] = res
}

// The server drops every connection after one update; a client sees each event
// once, and the result.
func TestClientResumesBrokenStreams(t *testing.T) {
	r := newRig(t)
	r.plane.change(func() {
		st := r.plane.streams["s-0a1b2c-8"]
		st.breakAfter = control.ErrClosing
		st.stdout = []byte("a")
	})
	h := r.client("DEV").Handle("s-0a1b2c-8")
	var out bytes.Buffer
	phases := 0
	for e, err := range h.Stream(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind == enclave.StreamPhase {
			phases++
		}
		if out.Write(e.Output); len(e.Output) > 0 {
			r.plane.change(func() {
				if st := r.plane.streams["s-0a1b2c-8"]; len(st.stdout) < 4 {
					st.stdout = append(st.stdout, byte('a'+len(st.stdout)))
				} else {
					r.finish()
				}
			})
		}
	}
	if out.String() != "abcd" || phases != 3 {
		t.Errorf("output %q, %d phases", out.String(), phases)
	}
	if res, err := h.Result(t.Context()); err != nil || res.Stdout != "abcd" {
		t.Errorf("Result = %+v, %v", res, err)
	}
	if res, err := r.client("DEV").Result(t.Context(), "s-0a1b2c-8"); err != nil || res.Stdout != "abcd" {
		t.Errorf("Client.Result = %+v, %v", res, err)
	}
}

func TestClientGivesUpOnRefusals(t *testing.T) {
	r := newRig(t)
	for id, key := range map[string]string{"s-0a1b2c-9": "DEV", "s-0a1b2c-8": "REVOKED"} {
		_, err := r.client(key).Handle(id).Result(t.Context())
		if !errors.Is(err, enclave.ErrNotFound) && !errors.Is(err, enclave.ErrUnauthorized) {
			t.Errorf("%s with %s: %v", id, key, err)
		}
	}
}

// open starts a stream and returns a reader of its body, behind the headers.
func (r *rig) open(t *testing.T, key string) *bufio.Reader {
	t.Helper()
	return r.openBy(t, new(net.Dialer).DialContext, key)
}

// openBy is open over the connections of dial.
func (r *rig) openBy(t *testing.T, dial func(context.Context, string, string) (net.Conn, error), key string) *bufio.Reader {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+r.addr+"/v1/sessions/s-0a1b2c-8/stream", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+r.key[key])
	resp, err := (&http.Transport{DialContext: dial, DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
	return bufio.NewReader(resp.Body)
}

// until reads to a line that has the prefix.
func until(t *testing.T, b *bufio.Reader, prefix string) {
	t.Helper()
	for {
		line, err := b.ReadString('\n')
		if err != nil {
			t.Fatalf("before %q: %v", prefix, err)
		}
		if strings.HasPrefix(line, prefix) {
			return
		}
	}
}

func TestIdleStreamSaysThatItLives(t *testing.T) {
	r := newRig(t, func(r *rig) { r.keepAlive = time.Millisecond })
	b := r.open(t, "VIEWER")
	until(t, b, ": alive")
	until(t, b, ": alive")
}

func TestRevokedKeyEndsItsStream(t *testing.T) {
	r := newRig(t, func(r *rig) { r.recheck = time.Millisecond })
	b := r.open(t, "VIEWER")
	until(t, b, "event: phase")
	r.keys.change(func() {
		for id, k := range r.keys.keys {
			k.Revoked = created
			r.keys.keys[id] = k
		}
	})
	rest, err := io.ReadAll(b)
	if err != nil || strings.Contains(string(rest), "event: end") {
		t.Errorf("%q, %v", rest, err)
	}
}

// The limits on reading a request and writing an answer are not ones on a stream.
func TestStreamOutlastsTheReadTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, dial := newRigOnPipe(t)
		b := r.openBy(t, dial, "VIEWER")
		began := time.Now()
		for time.Since(began) < 3*max(r.http.ReadTimeout, r.http.WriteTimeout) {
			until(t, b, ": alive")
		}
		r.plane.change(r.finish)
		until(t, b, "event: end")
	})
}

// A client that does not read holds a stream no longer than one write may take.
func TestSlowReaderIsCut(t *testing.T) {
	r := newRig(t, func(r *rig) { r.writeTime = 50 * time.Millisecond })
	r.plane.change(func() {
		r.plane.streams["s-0a1b2c-8"].stdout = bytes.Repeat([]byte("x"), 64<<20)
	})
	c, err := net.Dial("tcp", r.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "GET /v1/sessions/s-0a1b2c-8/stream HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer "+r.key["DEV"]+"\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	until(t, bufio.NewReader(c), "event: stdout")
	// Shutdown tells streams to end, which one that is stuck in a write does not
	// hear: only the write's deadline ends it.
	r.shutdown(t)
}

// What a stream holds of what its reader does not take is counted like any other
// answer. At the share of an organisation its other streams wait, and hold nothing.
func TestStreamsHoldNoMoreThanTheShareOfAnswers(t *testing.T) {
	r := newRig(t)
	lent := func() int64 {
		r.pressure.mu.Lock()
		defer r.pressure.mu.Unlock()
		return r.pressure.reads.used
	}
	const all = 16 << 20 // more than the kernel takes of it
	r.plane.change(func() {
		r.plane.streams["s-0a1b2c-8"].stdout = bytes.Repeat([]byte("x"), all)
	})
	r.pressure.reads.most = 4 * (all + 1<<20)
	c, err := net.Dial("tcp", r.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "GET /v1/sessions/s-0a1b2c-8/stream HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer "+r.key["DEV"]+"\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	until(t, bufio.NewReader(c), "event: stdout")
	if n := lent(); n < all {
		t.Errorf("a stream of %d bytes whose reader takes nothing counts as %d", all, n)
	}
	before := lent()
	second := r.open(t, "VIEWER")
	until(t, second, ": stream of")
	if n := lent(); n != before {
		t.Errorf("a stream for which there is no room has %d bytes", n-before)
	}
	if resp, body := r.do(t, "GET", "/v1/sessions/s-0a1b2c-9", "OTHER", nil); resp.StatusCode != http.StatusOK {
		t.Errorf("another organisation: %s %s", resp.Status, body)
	}
	c.Close()
	until(t, second, "event: stdout")
	r.plane.change(func() { r.plane.streams["s-0a1b2c-8"].ended = true })
	until(t, second, "event: end")
	r.await(t, "all is given back", func() bool { return lent() == 0 })
}

// shutdown shuts the server down and waits until no request is being answered.
func (r *rig) shutdown(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := r.http.Shutdown(ctx); err != nil {
		t.Errorf("a request is still being answered: %v", err)
	}
}

func TestShutdownEndsStreamsWithoutAnEnd(t *testing.T) {
	r := newRig(t)
	b := r.open(t, "VIEWER")
	until(t, b, `data: {"phase":"running"}`)
	r.shutdown(t)
	rest, err := io.ReadAll(b)
	if err != nil || strings.Contains(string(rest), "event: end") {
		t.Errorf("%q, %v", rest, err)
	}
}

func TestStreamOfAPlaneThatBreaksIsLoggedAndResumable(t *testing.T) {
	r := newRig(t)
	r.plane.change(func() { r.plane.streams["s-0a1b2c-8"].breakAfter = errors.New("canary: no such table") })
	_, body := r.do(t, "GET", "/v1/sessions/s-0a1b2c-8/stream", "DEV", nil)
	if strings.Contains(body, "event: end") || strings.Contains(body, "canary") || !strings.Contains(body, `"running"`) {
		t.Errorf("%s", body)
	}
	if !strings.Contains(r.log.String(), "canary: no such table") {
		t.Error("the log does not say why")
	}
}

// Every byte of output survives, however it is cut; text stays text.
func TestPiecesLoseNoByte(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	random := make([]byte, 100_000)
	for i := range random {
		random[i] = byte(rng.Uint32())
	}
	for name, b := range map[string][]byte{
		"nothing": nil, "ascii": bytes.Repeat([]byte("x"), 3*maxOutput+1), "umlauts": []byte("x" + strings.Repeat("ä", maxOutput)),
		"four bytes": []byte("x" + strings.Repeat("😀", maxOutput)), "random": random, "half a character": []byte("ä\xf0\x9f"), "only half": []byte("\xe2\x82"),
		"lines for a parser": []byte("a\n\ndata: x\r\nid: p9.o9.e9.a9.r1\r\u2028"),
	} {
		var got []byte
		text := true
		for p, left := range pieces(b) {
			raw, err := json.Marshal(p)
			if err != nil || bytes.ContainsAny(raw, "\n\r") {
				t.Fatalf("%s: %q, %v", name, raw, err)
			}
			var q struct {
				Text   string
				Base64 []byte
			}
			if err := json.Unmarshal(raw, &q); err != nil {
				t.Fatal(err)
			}
			if len(q.Base64) > 0 {
				text = false
				got = append(got, q.Base64...)
			} else {
				got = append(got, q.Text...)
			}
			if left != len(b)-len(got) {
				t.Fatalf("%s: %d left, want %d", name, left, len(b)-len(got))
			}
		}
		if !bytes.Equal(got, b) {
			t.Errorf("%s: %d bytes became %d", name, len(b), len(got))
		}
		if text != utf8.Valid(b) {
			t.Errorf("%s: text is %v", name, text)
		}
	}
}
