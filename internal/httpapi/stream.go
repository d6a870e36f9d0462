package httpapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"time"
	"unicode/utf8"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/auth"
	"github.com/enclave-run/enclave/internal/control"
)

// keptBuffer is how many bytes a stream that has nothing to send keeps for its
// next event.
const keptBuffer = 4 << 10

// maxOutput is how many bytes of output one event has at most.
const maxOutput = 32 << 10

// stream sends what happens in a session as server-sent events. The id of each
// says how much of the stream the client has once it has that event; sent back
// as Last-Event-ID it resumes there. A stream that ends without "end" is to be
// resumed.
func (s *Server) stream(w http.ResponseWriter, r *http.Request, c auth.Caller) error {
	var cur control.Cursor
	if last := r.Header.Values("Last-Event-ID"); len(last) > 0 {
		var err error
		if cur, err = parseCursor(last[0]); err != nil || len(last) > 1 {
			return errCursor()
		}
	}
	id := r.PathValue("id")
	// Watch may have nothing to say for long; the client shall know at once
	// whether it was let in.
	if _, err := s.plane.Session(r.Context(), c, id); err != nil {
		return err
	}
	select {
	case <-s.closing:
		return control.ErrClosing
	default:
	}

	defer s.noteStream(w)()
	done, err := s.pressure.stream(c)
	if err != nil {
		return err
	}
	defer done()
	w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	w.Header().Set("X-Accel-Buffering", "no") // proxies that know it don't hold events back
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return nil
	}
	out := &events{sender: s.sender(w)}
	err = s.follow(r, c, id, cur, out)
	if err != nil && r.Context().Err() == nil && !errors.Is(err, errCut) && !errors.Is(err, control.ErrClosing) && !errors.Is(err, control.ErrAway) {
		s.log.ErrorContext(r.Context(), "stream ended", "session", id, "err", err)
	}
	return nil // the status has been sent
}

// errCut ends the stream of a client that does not read, is gone, or may no
// longer read. That is no fault of the server's.
var errCut = errors.New("the stream was cut")

// follow sends the updates of a session until its end, the client's, or the
// server's.
func (s *Server) follow(r *http.Request, c auth.Caller, id string, cur control.Cursor, out *events) error {
	ctx, cancel := context.WithCancel(r.Context())
	steps := make(chan step)
	next := make(chan struct{}, 1) // the client has taken the last step: nothing is fetched ahead for one that does not read
	done := make(chan struct{})
	defer func() {
		cancel()
		<-done
	}()
	go func() {
		defer close(done)
		for at := cur; ; {
			st := s.step(ctx, c, id, at)
			at = st.u.Cursor
			select {
			case steps <- st:
			case <-ctx.Done():
				st.free()
				return
			}
			if st.err != nil || st.u.End {
				return
			}
			select {
			case <-next:
			case <-ctx.Done():
				return
			}
		}
	}()

	changed := s.credentialsChanged()
	good := func() error {
		changed = s.credentialsChanged() // before the look-up, so that no change is missed
		now, err := s.identify(r)
		if err != nil || !now.May(auth.ReadSessions) || now.Org != c.Org {
			return fmt.Errorf("%w: the credential is no longer good", errCut)
		}
		return nil
	}
	recheck := time.NewTicker(s.recheck)
	defer recheck.Stop()
	alive := time.NewTicker(s.keepAlive)
	defer alive.Stop()
	if err := out.comment("stream of " + id); err != nil {
		return err
	}
	for {
		select {
		case st := <-steps:
			if st.err != nil {
				st.free()
				return st.err
			}
			err := s.send(ctx, c, id, cur, st.u, out)
			st.free()
			if err != nil || st.u.End {
				return err
			}
			cur = st.u.Cursor
			alive.Reset(s.keepAlive)
			next <- struct{}{} // at once: there is one step at a time
		case <-alive.C:
			if err := out.comment("alive"); err != nil {
				return err
			}
		// A credential that ends while its stream is open ends the stream: a key
		// that is revoked here at once, and a token that expires at the next check.
		case <-changed:
			if err := good(); err != nil {
				return err
			}
		case <-recheck.C:
			if err := good(); err != nil {
				return err
			}
		case <-s.closing:
			return control.ErrClosing
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// A step is what one turn of a stream sends, and the memory that this takes.
type step struct {
	u    control.Update
	err  error
	free func() // gives the memory back; never nil
}

// step waits until the stream has something after cur and there is memory to send
// it. While it waits for memory, of which all who follow a session want some at
// once, it holds none: what there is is read again.
func (s *Server) step(ctx context.Context, c auth.Caller, id string, cur control.Cursor) step {
	free, room := func() {}, int64(0)
	for {
		u, err := s.plane.Watch(ctx, c, id, cur)
		if err != nil {
			return step{u, err, free}
		}
		want := updateRoom(u)
		if u.Result {
			sizes, err := s.plane.Output(ctx, c, id, 0, 0, 0)
			if err != nil {
				return step{u, err, free}
			}
			want += resultRoom(sizes)
		}
		want = min(want, s.pressure.mostRead()) // more than there is would wait for ever
		if want <= room {
			return step{u, nil, free}
		}
		free()
		if free, err = s.pressure.read(c.Org, want); err == nil {
			return step{u, nil, free}
		}
		u = control.Update{}
		if free, err = s.pressure.lend(ctx, c.Org, want); err != nil {
			return step{u, err, func() {}}
		}
		room = want
	}
}

// updateRoom is what sending u takes in memory: what was read of the store, and
// one event, of which JSON may make six times as much.
func updateRoom(u control.Update) int64 {
	const event = 2 << 10 // as for auditRoom, and more than what there is of phases
	output := len(u.Stdout) + len(u.Stderr)
	return int64(event + event*len(u.Audit) + output + 6*min(output, maxOutput))
}

// send sends u, which follows cur.
func (s *Server) send(ctx context.Context, c auth.Caller, id string, cur control.Cursor, u control.Update, out *events) error {
	if !u.Result {
		return out.update(cur, u, nil)
	}
	res, denials, err := s.plane.Result(ctx, c, id)
	if err != nil {
		return err
	}
	public := publicResult(res, denials) // without the output, which the stream had
	return out.update(cur, u, &public)
}

// events writes server-sent events.
type events struct {
	*sender
	buf bytes.Buffer
}

// update sends u, which follows cur, each event with the cursor after it.
// result is u.Result as the world may see it.
func (e *events) update(cur control.Cursor, u control.Update, result *enclave.Result) error {
	for _, p := range u.Phases {
		cur.Phases++
		if err := e.event(cur, enclave.StreamPhase, map[string]string{"phase": string(p)}); err != nil {
			return err
		}
	}
	for _, a := range u.Audit {
		cur.Audit = a.Seq
		if err := e.event(cur, enclave.StreamAudit, a); err != nil {
			return err
		}
	}
	for part, left := range pieces(u.Stdout) {
		cur.Stdout = u.Cursor.Stdout - int64(left)
		if err := e.event(cur, enclave.StreamStdout, part); err != nil {
			return err
		}
	}
	for part, left := range pieces(u.Stderr) {
		cur.Stderr = u.Cursor.Stderr - int64(left)
		if err := e.event(cur, enclave.StreamStderr, part); err != nil {
			return err
		}
	}
	if result != nil {
		cur.Result = true
		if err := e.event(cur, enclave.StreamResult, result); err != nil {
			return err
		}
	}
	if u.End {
		return e.event(cur, enclave.StreamEnd, struct{}{})
	}
	return nil
}

// A piece is the data of a stdout or stderr event: Text if the bytes are UTF-8,
// else Base64. No byte is lost.
type piece struct {
	Text   string `json:"text,omitempty"`
	Base64 []byte `json:"base64,omitempty"`
}

// pieces yields b in events' worth, each with the number of bytes left after
// it. A character is split only if its bytes have not all come.
func pieces(b []byte) iter.Seq2[piece, int] {
	return func(yield func(piece, int) bool) {
		for len(b) > 0 {
			n := min(len(b), maxOutput)
			for i := max(0, n-utf8.UTFMax+1); i < n; i++ {
				if i > 0 && utf8.RuneStart(b[i]) && !utf8.FullRune(b[i:n]) {
					n = i
				}
			}
			p := piece{Text: string(b[:n])}
			if !utf8.Valid(b[:n]) {
				p = piece{Base64: b[:n]}
			}
			b = b[n:]
			if !yield(p, len(b)) {
				return
			}
		}
	}
}

func (e *events) event(cur control.Cursor, kind string, data any) error {
	b, err := encode(data) // one line, and its end
	if err != nil {
		return fmt.Errorf("encode a %s event: %w", kind, err)
	}
	e.buf.Reset()
	fmt.Fprintf(&e.buf, "id: %s\nevent: %s\ndata: %s\n", formatCursor(cur), kind, b)
	return e.send()
}

// comment sends what is no event, for the sake of sending.
func (e *events) comment(text string) error {
	e.buf.Reset()
	fmt.Fprintf(&e.buf, ": %s\n\n", text)
	return e.send()
}

func (e *events) send() error {
	if err := e.write(e.buf.Bytes()); err != nil {
		return err
	}
	if e.buf.Cap() > keptBuffer { // an idle stream holds nothing of what it sent
		e.buf = bytes.Buffer{}
	}
	return e.flush()
}
