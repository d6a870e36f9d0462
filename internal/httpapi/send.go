package httpapi

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"time"
	"unicode/utf8"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/auth"
	"github.com/enclave-run/enclave/internal/control"
	"github.com/enclave-run/enclave/internal/jsontext"
	"github.com/enclave-run/enclave/internal/session"
)

// A sender sends an answer in pieces. Its client may take as long as it likes
// for all of it, but no longer than allow for one piece: one that is slow gets
// everything, and one that takes nothing is cut.
type sender struct {
	w     http.ResponseWriter
	rc    *http.ResponseController
	allow time.Duration // for each piece
	begun bool          // something was sent
}

func (s *Server) sender(w http.ResponseWriter) *sender {
	return &sender{w: w, rc: http.NewResponseController(w), allow: s.writeTime}
}

// atOnce is how many bytes of an answer are written at once, about.
const atOnce = 32 << 10

// write sends b. Its error is errCut.
func (o *sender) write(b []byte) error {
	for len(b) > 0 {
		n := min(len(b), 2*atOnce)
		if err := o.rc.SetWriteDeadline(time.Now().Add(o.allow)); err != nil && !errors.Is(err, http.ErrNotSupported) {
			return fmt.Errorf("%w: %w", errCut, err)
		}
		o.begun = true
		if _, err := o.w.Write(b[:n]); err != nil {
			return fmt.Errorf("%w: %w", errCut, err)
		}
		b = b[n:]
	}
	return nil
}

// flush sends what was written on its way.
func (o *sender) flush() error {
	if err := o.rc.Flush(); err != nil {
		return fmt.Errorf("%w: %w", errCut, err)
	}
	return nil
}

// failed returns err for an answer of which nothing was sent. Else it ends the
// connection: a client must not take what it has for the whole.
func (s *Server) failed(r *http.Request, o *sender, err error) error {
	if err == nil || !o.begun {
		return err
	}
	if r.Context().Err() == nil && !errors.Is(err, errCut) {
		s.log.ErrorContext(r.Context(), "answer ended early", "route", r.Pattern, "err", err)
	}
	panic(http.ErrAbortHandler) // net/http knows no other way, and logs nothing of it
}

// A part is one stream of a session's output, as sendResult reads it.
type part struct {
	name   string // of its field
	of     func(session.Output) []byte
	from   func(at int64) (stdout, stderr int64) // offsets that read it, and nothing of the other
	length int64
}

// beyond is an offset that no output reaches.
const beyond = 1 << 62

// window is how many bytes of output are read of the store at once.
const window = 128 << 10

// resultRoom is what sending a result of these sizes takes in memory: a window as
// it is stored and as it is sent, the record as it is stored, read and sent as
// denials, whose names a workload chose, and the JSON, which is encoded whole.
func resultRoom(of session.Output) int64 { return 512<<10 + 4<<10*of.Events + 6*of.JSONLength }

// sendResult sends a result as encode would write publicResult with all of its
// output, without the end of the line. Of the output no more than a window is in
// memory, and nothing is open in the store while the client takes its time.
func (s *Server) sendResult(ctx context.Context, o *sender, c auth.Caller, id string, res session.Result, denials []audit.Event) error {
	frame, err := encode(publicResult(res, denials))
	if err != nil {
		return err
	}
	// The exit code, a number or null, is all that precedes them.
	const before, between = `"stdout":"`, `","stderr":"`
	at := bytes.Index(frame, []byte(before+between))
	if at < 0 {
		return errors.New("a result has no place for its output")
	}
	head, tail := frame[:at+len(before)], bytes.TrimSuffix(frame[at+len(before+between)+1:], []byte("\n"))
	stdout := part{"stdout", func(p session.Output) []byte { return p.Stdout }, func(at int64) (int64, int64) { return at, beyond }, res.StdoutLength}
	stderr := part{"stderr", func(p session.Output) []byte { return p.Stderr }, func(at int64) (int64, int64) { return beyond, at }, res.StderrLength}

	if err := o.write(head); err != nil {
		return err
	}
	var lossy []part
	for i, p := range []part{stdout, stderr} {
		if i > 0 {
			if err := o.write([]byte(between)); err != nil {
				return err
			}
		}
		lost, err := s.sendText(ctx, o, c, id, p)
		if err != nil {
			return err
		}
		if lost {
			lossy = append(lossy, p)
		}
	}
	if err := o.write([]byte{'"'}); err != nil {
		return err
	}
	for _, p := range lossy {
		if err := o.write(fmt.Appendf(nil, `,"%sBase64":"`, p.name)); err != nil {
			return err
		}
		out := bufio.NewWriterSize(pieceWriter{o}, atOnce)
		enc := base64.NewEncoder(base64.StdEncoding, out)
		if err := s.read(ctx, c, id, p, func(b []byte) error { _, err := enc.Write(b); return err }); err != nil {
			return err
		}
		if err := errors.Join(enc.Close(), out.Flush()); err != nil {
			return err
		}
		if err := o.write([]byte{'"'}); err != nil {
			return err
		}
	}
	return o.write(tail)
}

// A pieceWriter is a sender as an io.Writer.
type pieceWriter struct{ o *sender }

func (p pieceWriter) Write(b []byte) (int, error) {
	if err := p.o.write(b); err != nil {
		return 0, err
	}
	return len(b), nil
}

// sendText sends p as the inside of a JSON string, and reports whether that
// lost bytes that are not UTF-8.
func (s *Server) sendText(ctx context.Context, o *sender, c auth.Caller, id string, p part) (lost bool, err error) {
	var out, rest []byte // rest is the beginning of a character
	err = s.read(ctx, c, id, p, func(b []byte) error {
		b = append(rest, b...)
		for len(b) > 0 {
			n := min(len(b), atOnce)
			var took int
			out, took = jsontext.AppendString(out[:0], b[:n], false)
			lost = lost || !utf8.Valid(b[:took])
			if err := o.write(out); err != nil {
				return err
			}
			if b = b[took:]; took == 0 || n == len(b)+took {
				break
			}
		}
		rest = bytes.Clone(b)
		return nil
	})
	if err != nil {
		return false, err
	}
	out, _ = jsontext.AppendString(out[:0], rest, true)
	return lost || len(rest) > 0, o.write(out)
}

// read hands out the whole of p, a window at a time.
func (s *Server) read(ctx context.Context, c auth.Caller, id string, p part, take func([]byte) error) error {
	for at := int64(0); at < p.length; {
		stdout, stderr := p.from(at)
		got, err := s.plane.Output(ctx, c, id, stdout, stderr, window)
		if err != nil {
			return fmt.Errorf("read %s: %w", p.name, err)
		}
		b := p.of(got)
		if len(b) == 0 {
			return fmt.Errorf("%s ends at byte %d of %d", p.name, at, p.length)
		}
		if err := take(b); err != nil {
			return err
		}
		at += int64(len(b))
	}
	return nil
}

// sendPage sends the items of a page as it reads them, batch of them at a time,
// as encode would write an enclave.Page of them. fetch returns up to n items
// after one, or the first ones after the zero item.
func sendPage[T, P any](s *Server, w http.ResponseWriter, r *http.Request, limit, batch int,
	fetch func(after *T, n int) ([]T, error), public func(T) P, cursor func(T) string) error {
	asked := min(batch, limit+1)
	items, err := fetch(nil, asked)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	o := s.sender(w)
	return s.failed(r, o, func() error {
		if err := o.write([]byte(`{"items":[`)); err != nil {
			return err
		}
		var last T
		for sent := 0; ; {
			for i := range items {
				if sent == limit {
					return endPage(o, cursor(last))
				}
				b, err := encode(public(items[i]))
				if err != nil {
					return err
				}
				if sent > 0 {
					b = append([]byte{','}, b...)
				}
				if err := o.write(bytes.TrimSuffix(b, []byte("\n"))); err != nil {
					return err
				}
				sent, last = sent+1, items[i]
			}
			if len(items) < asked {
				return endPage(o, "")
			}
			asked = min(batch, limit+1-sent) // one more than is sent tells whether there is another page
			if items, err = fetch(&last, asked); err != nil {
				return err
			}
		}
	}())
}

func endPage(o *sender, next string) error {
	end := enclave.Page[struct{}]{Items: []struct{}{}, NextCursor: next}
	b, err := encode(end)
	if err != nil {
		return err
	}
	return o.write(bytes.TrimPrefix(b, []byte(`{"items":[`)))
}

// head answers a HEAD request to a resource that GET would answer with JSON:
// that it is there, and nothing of it is read but the row of its session.
func (s *Server) head(w http.ResponseWriter, r *http.Request, c auth.Caller) (done bool, err error) {
	if r.Method != http.MethodHead {
		return false, nil
	}
	if id := r.PathValue("id"); id != "" {
		if _, err := s.plane.Session(r.Context(), c, id); err != nil {
			return true, err
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	return true, nil
}

// result sends the result of an ended session.
func (s *Server) result(w http.ResponseWriter, r *http.Request, c auth.Caller) error {
	id := r.PathValue("id")
	sizes, err := s.plane.Output(r.Context(), c, id, 0, 0, 0)
	if err != nil {
		return err
	}
	if r.Method == http.MethodHead {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusOK)
		return nil
	}
	return s.withResult(w, r, c, sizes, nil, "\n")
}

// get sends a session, with its result if it has one.
func (s *Server) get(w http.ResponseWriter, r *http.Request, c auth.Caller) error {
	if done, err := s.head(w, r, c); done {
		return err
	}
	id := r.PathValue("id")
	found, err := s.plane.Session(r.Context(), c, id)
	if err != nil {
		return err
	}
	if found.Phase.Ended() {
		sizes, err := s.plane.Output(r.Context(), c, id, 0, 0, 0)
		switch {
		case err == nil:
			b, err := encode(publicSession(found))
			if err != nil {
				return err
			}
			b = bytes.TrimSuffix(b, []byte("}\n"))
			return s.withResult(w, r, c, sizes, append(b, `,"result":`...), "}\n")
		case !errors.Is(err, session.ErrNotFound) && !errors.Is(err, control.ErrNotEnded) && !errors.Is(err, session.ErrForgotten):
			return err
		}
	}
	s.write(w, r, http.StatusOK, "application/json", publicSession(found))
	return nil
}

// withResult sends a session's result between before and after. It is refused
// if the results that are being sent take up the memory for them.
func (s *Server) withResult(w http.ResponseWriter, r *http.Request, c auth.Caller, sizes session.Output, before []byte, after string) error {
	free, err := s.pressure.read(c.Org, resultRoom(sizes))
	if err != nil {
		return err
	}
	defer free()
	id := r.PathValue("id")
	res, denials, err := s.plane.Result(r.Context(), c, id)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	o := s.sender(w)
	return s.failed(r, o, func() error {
		if err := o.write(before); err != nil {
			return err
		}
		if err := s.sendResult(r.Context(), o, c, id, res, denials); err != nil {
			return err
		}
		return o.write([]byte(after))
	}())
}
