package local

import (
	"context"
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"github.com/enclave-run/enclave/internal/backend"
)

// dial connects to the way out of the sandbox id.
func dial(t *testing.T, r *Registry, id backend.ID) (net.Conn, error) {
	t.Helper()
	s, err := r.Sandbox(id)
	if err != nil {
		t.Fatal(err)
	}
	// A socket's address has at most 107 bytes.
	t.Chdir(s.Dir)
	var d net.Dialer
	return d.DialContext(t.Context(), "unix", SocketFile)
}

// accepts wants that a connection of the sandbox id comes out of l.
func accepts(t *testing.T, r *Registry, l net.Listener, id backend.ID) {
	t.Helper()
	c, err := dial(t, r, id)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	got, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	got.Close()
}

// The way out is there before the sandbox is and after a restart, and ends with it.
func TestTheWayOutLastsAsLongAsTheSandbox(t *testing.T) {
	h, dir, id := newHost(), t.TempDir(), fakeID(1)
	r := open(t, dir, &fakeDriver{h: h})
	l, err := r.Listen(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	accepts(t, r, l, id)
	if err := r.Start(t.Context(), id, fakeSpec()); err != nil {
		t.Fatal(err)
	}
	accepts(t, r, l, id)
	if err := errors.Join(r.Close(), l.Close()); err != nil {
		t.Fatal(err)
	}
	r = open(t, dir, &fakeDriver{h: h})
	if _, err := dial(t, r, id); err == nil {
		t.Error("a sandbox connects to nobody")
	}
	if l, err = r.Listen(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	accepts(t, r, l, id)
	ended := make(chan error)
	go func() {
		_, err := l.Accept()
		ended <- err
	}()
	if err := r.Destroy(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetDeadline(time.Unix(1, 0)) // one that is still open does not hang the test
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("an accept outlasts its sandbox: %v", err)
	}
	h.nothingLeft(t, dir)
}

// What was listened for and never started is listed, and goes like any other; so does
// what a Listen that failed has left.
func TestWhatWasOnlyListenedForGoes(t *testing.T) {
	for _, step := range []string{"", "place", "listen"} {
		h, dir, id := newHost(), t.TempDir(), fakeID(1)
		d := &fakeDriver{h: h, fails: step}
		r := open(t, dir, d)
		if _, err := r.Listen(t.Context(), id); (err != nil) != (step != "") || err != nil && !errors.Is(err, errStep) {
			t.Errorf("%q fails: %v", step, err)
		}
		if ids, err := r.List(t.Context()); err != nil || len(ids) != 1 || ids[0] != id {
			t.Errorf("%q fails: listed are %v, %v", step, ids, err)
		}
		if _, err := r.Wait(t.Context(), id); !errors.Is(err, backend.ErrNotFound) {
			t.Errorf("%q fails: it ended with %v", step, err)
		}
		d.fails = ""
		if err := r.Destroy(t.Context(), id); err != nil {
			t.Errorf("%q fails: %v", step, err)
		}
		h.nothingLeft(t, dir)
	}
}

// Each Wait that was pending says how it ended, and each that comes later that there
// is nothing.
func TestDestroyEndsEachWaitThatIsPending(t *testing.T) {
	h, dir, id := newHost(), t.TempDir(), fakeID(1)
	r := open(t, dir, &fakeDriver{h: h})
	if err := r.Start(t.Context(), id, fakeSpec()); err != nil {
		t.Fatal(err)
	}
	type answer struct {
		exit backend.Exit
		err  error
	}
	answers, asking := make(chan answer), make(chan struct{})
	for range 5 {
		go func() {
			asking <- struct{}{}
			e, err := r.Wait(t.Context(), id)
			answers <- answer{e, err}
		}()
	}
	for range 5 {
		<-asking
	}
	if err := r.Destroy(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		// One that had asked and not yet been heard comes later.
		if a := <-answers; a.err == nil && a.exit.Cause != backend.Destroyed || a.err != nil && !errors.Is(a.err, backend.ErrNotFound) {
			t.Errorf("it ended with %+v, %v", a.exit, a.err)
		}
	}
	if _, err := r.Wait(t.Context(), id); !errors.Is(err, backend.ErrNotFound) {
		t.Errorf("what is gone ended with %v", err)
	}
	h.nothingLeft(t, dir)
}

// Work whose beginning is not on record must not come.
func TestABeginningThatCannotBeRecordedIsAnError(t *testing.T) {
	h, dir, id := newHost(), t.TempDir(), fakeID(1)
	r := open(t, dir, &fakeDriver{h: h})
	if err := r.Start(t.Context(), id, fakeSpec()); err != nil {
		t.Fatal(err)
	}
	s, err := r.Sandbox(id)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(s.Path(begunFile), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := r.Begin(t.Context(), id); err == nil {
		t.Error("it has begun")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.acquire(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if err := r.Begin(ctx, id); !errors.Is(err, context.Canceled) {
		t.Errorf("begun beside another operation: %v", err)
	}
	s.release()
	if err := r.Destroy(t.Context(), id); err != nil {
		t.Error(err)
	}
	h.nothingLeft(t, dir)
}
