package openapitest

import (
	"bytes"
	"io"
	"net/http"
	"sync"
	"testing"
)

// Handler returns a handler that answers as next does, and fails t for each
// exchange that is not as the document says. Register the end of the server's
// listener with t.Cleanup after this call: the exchanges that are under way then
// are awaited before t ends.
func Handler(t testing.TB, next http.Handler) http.Handler {
	t.Helper()
	d, err := Load()
	if err != nil {
		t.Fatal(err)
	}
	var open sync.WaitGroup
	t.Cleanup(open.Wait)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		open.Add(1)
		defer open.Done()
		// net/http looks at what has become of the body of its own request.
		asked := *r
		sent := &tee{ReadCloser: r.Body}
		asked.Body = sent
		got := &recorder{ResponseWriter: w, status: http.StatusOK}
		next.ServeHTTP(got, &asked)
		if !got.wrote && r.Context().Err() != nil {
			return // nobody is there to read an answer
		}
		x := Exchange{
			Request: &asked, Sent: sent.read.Bytes(), Status: got.status,
			Header: w.Header().Clone(), Body: got.body.Bytes(), Cut: got.cut,
		}
		if err := d.Check(x); err != nil {
			t.Errorf("%s %s: %v", asked.Method, asked.URL, err)
		}
	})
}

// A tee keeps what is read of a body.
type tee struct {
	io.ReadCloser
	read bytes.Buffer
}

func (b *tee) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.read.Write(p[:n])
	return n, err
}

// A recorder keeps what is written of an answer.
type recorder struct {
	http.ResponseWriter
	status int
	wrote  bool
	cut    bool // a write did not succeed
	body   bytes.Buffer
}

func (w *recorder) WriteHeader(status int) {
	if !w.wrote {
		w.status, w.wrote = status, true
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *recorder) Write(p []byte) (int, error) {
	w.wrote = true
	w.body.Write(p)
	n, err := w.ResponseWriter.Write(p)
	w.cut = w.cut || err != nil
	return n, err
}

// Unwrap lets http.ResponseController through.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }
