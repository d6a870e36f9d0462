package wire

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// connect returns both ends of a unix connection.
func connect(t *testing.T) (core, guest net.Conn) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	guest, err = net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	core, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { core.Close(); guest.Close() })
	return core, guest
}

// A hostile is a guest that says to each call what it wants, frame by frame.
type hostile struct {
	*http2.Framer
	conn   net.Conn
	stream uint32 // of the newest call
}

// newHostile returns a client of a guest that does what act says when the first
// call has come.
func newHostile(t *testing.T, act func(h *hostile)) *Client {
	t.Helper()
	core, guest := connect(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		preface := make([]byte, len(http2.ClientPreface))
		if _, err := io.ReadFull(guest, preface); err != nil {
			return
		}
		h := &hostile{Framer: http2.NewFramer(guest, guest), conn: guest}
		if h.WriteSettings() != nil {
			return
		}
		for {
			f, err := h.ReadFrame()
			if err != nil {
				return
			}
			if f, ok := f.(*http2.HeadersFrame); ok {
				h.stream = f.StreamID
				break
			}
		}
		go func() { _, _ = io.Copy(io.Discard, guest) }() // never be what blocks
		act(h)
	}()
	c := NewClient(core)
	t.Cleanup(func() {
		c.Close()
		guest.Close()
		<-done
	})
	return c
}

func headers(fields ...string) []byte {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for i := 0; i < len(fields); i += 2 {
		_ = e.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return b.Bytes()
}

// head sends the headers of an answer with this status.
func (h *hostile) head(status string, end bool) error {
	return h.WriteHeaders(http2.HeadersFrameParam{StreamID: h.stream, BlockFragment: headers(":status", status), EndHeaders: true, EndStream: end})
}

// answers returns an act that answers with this status and body.
func answers(status, body string) func(*hostile) {
	return func(h *hostile) {
		_ = h.head(status, false)
		_ = h.WriteData(h.stream, true, []byte(body))
	}
}

// floods returns an act that answers with a body that never ends.
func floods(status, piece string) func(*hostile) {
	return func(h *hostile) {
		if h.head(status, false) != nil {
			return
		}
		// A guest that keeps within the flow control that the core gives would
		// wait for ever; one that does not is cut off.
		for h.WriteData(h.stream, false, []byte(piece)) == nil {
		}
	}
}

func TestHostileAnswersAreErrors(t *testing.T) {
	good := `{"version":3,"ipv6":true,"micros":1,"uid":1000,"confined":true}`
	for name, act := range map[string]func(*hostile){
		"another version":      answers("200", strings.Replace(good, `"version":3`, `"version":4`, 1)),
		"not confined":         answers("200", strings.Replace(good, `"confined":true`, `"confined":false`, 1)),
		"no JSON":              answers("200", "hello"),
		"nothing":              answers("200", ""),
		"unknown fields":       answers("200", `{"version":3,"confined":true,"extra":1}`),
		"two answers":          answers("200", good+good),
		"a refusal of no form": answers("500", "Internal Server Error"),
		"a redirect":           answers("302", ""),
		"a strange status":     answers("299", good),
		"an endless answer":    floods("200", strings.Repeat(" ", 16<<10)),
		"an endless refusal":   floods("422", strings.Repeat(" ", 16<<10)),
		"endless headers": func(h *hostile) {
			if h.WriteHeaders(http2.HeadersFrameParam{StreamID: h.stream, BlockFragment: headers(":status", "200")}) != nil {
				return
			}
			for h.WriteContinuation(h.stream, false, headers("x", strings.Repeat("y", 1000))) == nil {
			}
		},
		"large headers": func(h *hostile) {
			for i := range 64 {
				b := headers("x", strings.Repeat("y", 1000))
				if i == 0 {
					_ = h.WriteHeaders(http2.HeadersFrameParam{StreamID: h.stream, BlockFragment: headers(":status", "200")})
				} else if h.WriteContinuation(h.stream, i == 63, b) != nil {
					return
				}
			}
		},
		"endless 1xx": func(h *hostile) {
			for h.WriteHeaders(http2.HeadersFrameParam{StreamID: h.stream, EndHeaders: true,
				BlockFragment: headers(":status", "103", "x", strings.Repeat("y", 1000))}) == nil {
			}
		},
		"a frame too large": func(h *hostile) {
			h.SetMaxReadFrameSize(1 << 24)
			_ = h.WriteRawFrame(http2.FrameData, 0, h.stream, make([]byte, MaxChunk+1))
		},
		"no HTTP/2": func(h *hostile) { _, _ = h.conn.Write([]byte("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")) },
		"no streams at all": func(h *hostile) {
			_ = h.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 0})
			_ = h.WriteRSTStream(h.stream, http2.ErrCodeRefusedStream)
		},
		"going away": func(h *hostile) { _ = h.WriteGoAway(0, http2.ErrCodeNo, nil); h.conn.Close() },
		"a push": func(h *hostile) {
			_ = h.WritePushPromise(http2.PushPromiseParam{StreamID: h.stream, PromiseID: 2, BlockFragment: headers(":method", "GET"), EndHeaders: true})
		},
		"hanging up": func(h *hostile) { h.conn.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			c := newHostile(t, act)
			h, err := c.Hello(t.Context())
			if err == nil || h != (Hello{}) {
				t.Fatalf("%+v, %v", h, err)
			}
			t.Log(err)
			switch name {
			case "going away", "hanging up", "no streams at all":
			default:
				if !errors.Is(err, ErrProtocol) {
					t.Errorf("%v is not ErrProtocol", err)
				}
			}
		})
	}
	t.Run("but a good one is none", func(t *testing.T) {
		if _, err := newHostile(t, answers("200", good)).Hello(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestSilentGuestIsLeftWithTheContext(t *testing.T) {
	for name, act := range map[string]func(*hostile){
		"without an answer": func(*hostile) {},
		"after the headers": func(h *hostile) { _ = h.head("200", false) },
		"amid an event":     func(h *hostile) { _ = h.head("200", false); _ = h.WriteData(h.stream, false, []byte{1, 0}) },
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			c := newHostile(t, func(h *hostile) {
				act(h)
				cancel() // the caller's patience ends after what the guest says, and not before
			})
			if _, err := c.Start(ctx, StartRequest{Language: "bash"}); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
	}
}

// A process's stream is a hostile server's too.
func TestHostileEventsEndTheProcess(t *testing.T) {
	c := newHostile(t, answers("200", start+frame(Stdout, "x")+"\x02\xff\xff\xff\xff"))
	p, err := c.Start(t.Context(), StartRequest{Language: "bash"})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []EventKind{Started, Stdout} {
		if e, err := p.Next(); err != nil || e.Kind != want {
			t.Fatal(e, err)
		}
	}
	for range 2 {
		if _, err := p.Next(); !errors.Is(err, ErrProtocol) {
			t.Error(err)
		}
	}
	for name, body := range map[string]string{"no start": frame(Stdout, "x"), "nothing": "", "no JSON": "\x01\x00\x00\x00\x09{}"} {
		c := newHostile(t, answers("200", body))
		if p, err := c.Start(t.Context(), StartRequest{Language: "bash"}); err == nil {
			p.Close()
			t.Errorf("%s: started", name)
		}
	}
}

// What a process writes is held back by its reader, not gathered in memory: a
// guest that sends more than it may is cut off.
func TestOutputBeyondTheWindowEndsTheConnection(t *testing.T) {
	sent := make(chan int, 1)
	c := newHostile(t, func(h *hostile) {
		n := 0
		_ = h.head("200", false)
		_ = h.WriteData(h.stream, false, []byte(start))
		chunk := []byte(frame(Stdout, strings.Repeat("x", 16<<10-eventHeader)))
		for h.WriteData(h.stream, false, chunk) == nil {
			n += len(chunk)
		}
		sent <- n
	})
	p, err := c.Start(t.Context(), StartRequest{Language: "bash"})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if n := <-sent; n > 8<<20 {
		t.Errorf("%d bytes were taken before anyone read", n)
	}
}

func TestRefusalsHaveTheirMeaning(t *testing.T) {
	for body, want := range map[string]error{
		`{"code":"not_found","detail":"x"}`:      fs.ErrNotExist,
		`{"code":"exists","detail":"x"}`:         fs.ErrExist,
		`{"code":"permission","detail":"x"}`:     fs.ErrPermission,
		`{"code":"no_space","detail":"x"}`:       ErrNoSpace,
		`{"code":"no_interpreter","detail":"x"}`: ErrNoInterpreter,
		`{"code":"exited","detail":"x"}`:         ErrProcessExited,
	} {
		c := newHostile(t, answers("422", body))
		err := c.Remove(t.Context(), "x")
		var refused *CallError
		if !errors.Is(err, want) || !errors.As(err, &refused) || errors.Is(err, ErrProtocol) {
			t.Errorf("%s: %v", body, err)
		}
	}
	c := newHostile(t, answers("422", `{"code":"made up","detail":"\u001b[31m\n"}`))
	err := c.Remove(t.Context(), "x")
	if err == nil || strings.ContainsAny(err.Error(), "\x1b\n") || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%q", err)
	}
}

// serve returns a client of a guest that is a well-behaved server of h.
func serve(t *testing.T, h http.HandlerFunc) *Client {
	t.Helper()
	core, guest := connect(t)
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	conns := make(chan net.Conn, 1)
	conns <- guest
	srv := http.Server{Protocols: p, Handler: h}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(&chanListener{conns, guest.LocalAddr()}) }()
	c := NewClient(core)
	t.Cleanup(func() {
		c.Close()
		close(conns)
		<-served
		srv.Close()
	})
	return c
}

// A guest may keep all rules of HTTP and still never end.
func TestEndlessAnswersAreCut(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == PathRemove {
			w.WriteHeader(http.StatusUnprocessableEntity)
			_, _ = io.WriteString(w, `{"code":"exists","detail":""}`)
		} else {
			_, _ = io.WriteString(w, `{"entries":[]}`)
		}
		for {
			if _, err := w.Write(bytes.Repeat([]byte(" "), 4096)); err != nil {
				return
			}
		}
	})
	if _, err := c.List(t.Context(), "x"); !errors.Is(err, ErrProtocol) {
		t.Error(err)
	}
	if err := c.Remove(t.Context(), "x"); !errors.Is(err, ErrProtocol) {
		t.Error(err)
	}
}

// Who does not read a process's output holds up that process and no call.
func TestUnreadOutputDelaysNoCall(t *testing.T) {
	full := make(chan struct{})
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == PathProcesses {
			_, _ = io.WriteString(w, start)
			_ = http.NewResponseController(w).Flush()
			_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(time.Second))
			chunk := []byte(frame(Stdout, strings.Repeat("x", MaxChunk)))
			for range 64 {
				if _, err := w.Write(chunk); err != nil {
					break // the window is full
				}
			}
			close(full)
			<-r.Context().Done()
			return
		}
		_, _ = w.Write(bytes.Repeat([]byte(" "), 1<<20))
		_, _ = io.WriteString(w, `{"entries":[]}`)
	})
	p, err := c.Start(t.Context(), StartRequest{Language: "bash"})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	<-full
	if _, err := c.List(t.Context(), "x"); err != nil {
		t.Error(err)
	}
}

// All calls share one connection, and none makes another.
func TestClientMakesNoSecondConnection(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNoContent) })
	errs := make(chan error)
	for range 50 {
		go func() { errs <- c.Remove(t.Context(), "x") }()
	}
	for range 50 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	c.Close()
	if err := c.Remove(t.Context(), "x"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

type chanListener struct {
	conns chan net.Conn
	addr  net.Addr
}

func (l *chanListener) Accept() (net.Conn, error) {
	if conn, ok := <-l.conns; ok {
		return conn, nil
	}
	return nil, net.ErrClosed
}
func (l *chanListener) Close() error   { return nil }
func (l *chanListener) Addr() net.Addr { return l.addr }
