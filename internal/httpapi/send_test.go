package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/auth"
	"github.com/enclave-run/enclave/internal/session"
)

// whole is what encode writes for a result that is in memory as a whole: the
// oracle of what is sent in pieces.
func whole(t testing.TB, stdout, stderr []byte, given string) string {
	t.Helper()
	text := func(b []byte) (string, []byte) {
		var s strings.Builder
		lost := false
		for _, r := range string(b) {
			s.WriteRune(r)
		}
		if lost = s.String() != string(b); lost {
			return s.String(), b
		}
		return s.String(), nil
	}
	r := enclave.Result{Denials: []enclave.Denial{}, StdoutSize: int64(len(stdout)), StderrSize: int64(len(stderr)), DurationMS: 7}
	if given != "" {
		r.JSON = []byte(given)
	}
	r.Stdout, r.StdoutBase64 = text(stdout)
	r.Stderr, r.StderrBase64 = text(stderr)
	b, err := encode(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// sent is the same result as the server sends it, of which a read gives at most
// stingy bytes.
func sent(t testing.TB, s *Server, f *fakePlane, stdout, stderr []byte, given string, stingy int64) string {
	t.Helper()
	const id = "s-0a1b2c-7"
	f.change(func() {
		f.stingy, f.events = stingy, nil
		f.results[id] = session.Collected{Stdout: session.Text{stdout}, Stderr: session.Text{stderr}, JSON: []byte(given), Duration: 7 * time.Millisecond}
		if given == "" {
			f.results[id] = session.Collected{Stdout: session.Text{stdout}, Stderr: session.Text{stderr}, Duration: 7 * time.Millisecond}
		}
	})
	w := httptest.NewRecorder()
	r := httptest.NewRequest("GET", "/v1/sessions/"+id+"/result", nil)
	r.SetPathValue("id", id)
	c := auth.Caller{Org: "acme", Scopes: []string{auth.ReadSessions}}
	if err := s.result(w, r, c); err != nil {
		t.Fatal(err)
	}
	return w.Body.String()
}

func FuzzResultsAreSentAsTheyWouldBeEncoded(f *testing.F) {
	f.Add([]byte("plain\n"), []byte(""), `{"a":"\"stdout\":\"\",\"stderr\":\"\""}`, int64(3))
	f.Add([]byte("é\u202e😀\xff\xf0\x9f"), []byte("\xe2\x80"), `null`, int64(1))
	f.Add([]byte("\x00\x1b]52;\u009b<&>"), []byte("\u2028"), "", int64(0))
	plane := newFake()
	s := &Server{plane: plane, pressure: newPressure(0, 0, 0), writeTime: time.Minute}
	f.Fuzz(func(t *testing.T, stdout, stderr []byte, given string, stingy int64) {
		if stingy < 0 || stingy > 0 && int64(len(stdout)+len(stderr))/stingy > 1000 {
			stingy = 0
		}
		if !json.Valid([]byte(given)) {
			given = ""
		}
		if got, want := sent(t, s, plane, stdout, stderr, given, stingy), whole(t, stdout, stderr, given); got != want {
			t.Errorf("sent %q, want %q", got, want)
		}
	})
}

// A megabyte is sent as it would be encoded, a window at a time: no read of the
// store asks for more.
func TestLargeResultsAreSentInPieces(t *testing.T) {
	r := newRig(t)
	out := bytes.Repeat([]byte("größer \u202e\xff😀\n"), 80_000)
	if got, want := sent(t, r.Server, r.plane, out, out[1:], `[1]`, 0), whole(t, out, out[1:], `[1]`); got != want {
		t.Errorf("%d bytes, want %d, or others", len(got), len(want))
	}
	if r.plane.read != window {
		t.Errorf("a read asked for %d bytes", r.plane.read)
	}
	if used := r.pressure.reads.used; used != 0 {
		t.Errorf("%d bytes are still lent", used)
	}
}

// What fails half-way ends the connection: a client never takes a part for the
// whole.
func TestAResultThatFailsHalfWayIsNoResult(t *testing.T) {
	r := newRig(t)
	r.plane.change(func() {
		r.plane.results["s-0a1b2c-7"] = session.Collected{Stdout: session.Text{bytes.Repeat([]byte("x"), 3*window)}}
		r.plane.cut = "the disk is gone"
	})
	r.http.Handler = r.Server // the contract's own handler would have to read all
	resp, err := http.DefaultTransport.RoundTrip(r.request(t, "GET", "/v1/sessions/s-0a1b2c-7/result", "DEV"))
	if err == nil {
		defer resp.Body.Close()
		_, err = io.ReadAll(resp.Body)
	}
	if err == nil {
		t.Error("the client was not told")
	}
	if got := r.log.String(); !strings.Contains(got, "the disk is gone") {
		t.Errorf("the log has %s", got)
	}
	if used := r.pressure.reads.used; used != 0 {
		t.Errorf("%d bytes are still lent", used)
	}
}

// Of the memory for answers a quarter is one organisation's. Beyond that its
// reads are refused, and nobody else's.
func TestAnswersHoldNoMoreThanTheirShare(t *testing.T) {
	r := newRig(t)
	r.pressure.reads.most = 4 * (resultRoom(session.Output{JSONLength: 20, Events: int64(len(r.plane.events["s-0a1b2c-7"]))}) + 1000)
	free, err := r.pressure.read("acme", 2000)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/v1/sessions/s-0a1b2c-7", "/v1/sessions/s-0a1b2c-7/result", "/v1/sessions", "/v1/sessions/s-0a1b2c-7/export"} {
		resp, body := r.do(t, "GET", path, "DEV", nil)
		if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") != "1" || !strings.Contains(body, `"busy"`) {
			t.Errorf("%s: %s %s, Retry-After %q", path, resp.Status, body, resp.Header.Get("Retry-After"))
		}
		if resp, _ := r.do(t, "HEAD", path, "DEV", nil); resp.StatusCode != http.StatusOK {
			t.Errorf("HEAD %s: %s", path, resp.Status)
		}
	}
	if resp, body := r.do(t, "GET", "/v1/sessions/s-0a1b2c-9", "OTHER", nil); resp.StatusCode != http.StatusOK {
		t.Errorf("another organisation: %s %s", resp.Status, body)
	}
	free()
	if resp, body := r.do(t, "GET", "/v1/sessions/s-0a1b2c-7/result", "DEV", nil); resp.StatusCode != http.StatusOK {
		t.Errorf("once there is room: %s %s", resp.Status, body)
	}
	if used, of := r.pressure.reads.used, len(r.pressure.reads.byOrg); used != 0 || of != 0 {
		t.Errorf("%d bytes of %d organisations are still lent", used, of)
	}
}

// The denials of a result are a workload's to make: 401 events, with names that it
// chose, are read with it.
func TestAResultCountsWithItsRecord(t *testing.T) {
	r := newRig(t)
	r.pressure.reads.most = 4 * resultRoom(session.Output{JSONLength: 1000, Events: 100})
	if resp, body := r.do(t, "GET", "/v1/sessions/s-0a1b2c-7/result", "DEV", nil); resp.StatusCode != http.StatusOK {
		t.Errorf("of a short record: %s %s", resp.Status, body)
	}
	r.plane.change(func() {
		for seq := range uint64(401) {
			r.plane.events["s-0a1b2c-7"] = append(r.plane.events["s-0a1b2c-7"], audit.Event{Seq: seq + 1000, Type: audit.EgressDenied})
		}
	})
	for _, path := range []string{"/v1/sessions/s-0a1b2c-7", "/v1/sessions/s-0a1b2c-7/result"} {
		if resp, body := r.do(t, "GET", path, "DEV", nil); resp.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("%s, of a long one: %s %.40s", path, resp.Status, body)
		}
	}
}

// HEAD reads one row, whatever GET would read, and says what GET would say of
// what is not there.
func TestHeadCostsNothing(t *testing.T) {
	r := newRig(t)
	for _, rt := range r.routes() {
		if rt.method != "GET" || rt.scope == public {
			continue
		}
		path := strings.NewReplacer("{id}", "s-0a1b2c-7", "{seq}", "1").Replace(rt.path)
		before := len(r.plane.asked())
		resp, body := r.do(t, "HEAD", path, "OWNER", nil)
		asked := r.plane.asked()[before:]
		// Output of no bytes is the row that says that the session has ended.
		if rows := slices.DeleteFunc(slices.Clone(asked), func(call string) bool {
			method, _, _ := strings.Cut(call, " ")
			return method == "Session" || method == "Output"
		}); len(rows) > 0 || len(asked) > 1 || r.plane.read > 0 {
			t.Errorf("HEAD %s: %v", path, asked)
		}
		resp.Body.Close()
		get, err := http.DefaultTransport.RoundTrip(r.request(t, "GET", path, "OWNER"))
		if err != nil {
			t.Fatal(err)
		}
		get.Body.Close()
		r.plane.change(func() { r.plane.read = 0 })
		if resp.StatusCode != http.StatusOK || body != "" || resp.Header.Get("Content-Type") != get.Header.Get("Content-Type") {
			t.Errorf("HEAD %s: %s %q, %s, GET %s", path, resp.Status, body, resp.Header.Get("Content-Type"), get.Header.Get("Content-Type"))
		}
	}
	for path, want := range map[string]int{
		"/v1/sessions/s-0a1b2c-9/result": 404, "/v1/sessions/s-0a1b2c-9/export": 404, "/v1/sessions/s-0a1b2c-9": 404,
		"/v1/sessions/s-0a1b2c-8/result": 409, "/v1/sessions?limit=0": 400, "/v1/sessions/s-0a1b2c-9/audit": 404,
	} {
		if resp, _ := r.do(t, "HEAD", path, "DEV", nil); resp.StatusCode != want {
			t.Errorf("HEAD %s: %s", path, resp.Status)
		}
	}
}

// A page is the same however few items are read at a time, at every length
// around its limit.
func TestPagesAreTheSameHoweverTheyAreRead(t *testing.T) {
	r := newRig(t)
	for n := range 12 {
		events := make([]audit.Event, n)
		for i := range events {
			events[i] = audit.Event{Session: "s-0a1b2c-7", Seq: uint64(i) + 1, Type: audit.SessionCreated}
		}
		for limit := 1; limit < 12; limit++ {
			p := enclave.Page[audit.Event]{Items: events[:min(n, limit)]}
			if n > limit {
				p.NextCursor = fmt.Sprint(limit)
			}
			want, err := encode(p)
			if err != nil {
				t.Fatal(err)
			}
			for batch := 1; batch < 14; batch++ {
				w := httptest.NewRecorder()
				fetch := func(after *audit.Event, n int) ([]audit.Event, error) {
					var from uint64
					if after != nil {
						from = after.Seq
					}
					return events[from:min(int(from)+n, len(events))], nil
				}
				err := sendPage(r.Server, w, httptest.NewRequest("GET", "/", nil), limit, batch, fetch,
					func(e audit.Event) audit.Event { return e }, func(e audit.Event) string { return fmt.Sprint(e.Seq) })
				if err != nil || w.Body.String() != string(want) {
					t.Fatalf("%d of %d by %d: %s, want %s, %v", limit, n, batch, w.Body, want, err)
				}
			}
		}
	}
}

// A tardy connection takes a piece only if it may take longer than the last one
// took, and nothing once its deadline does not move.
type tardy struct {
	http.ResponseWriter
	deadlines []time.Time
	takes     int // pieces
}

func (d *tardy) SetWriteDeadline(t time.Time) error {
	d.deadlines = append(d.deadlines, t)
	return nil
}

func (d *tardy) Write(b []byte) (int, error) {
	if d.takes--; d.takes < 0 {
		return 0, errors.New("i/o timeout")
	}
	return len(b), nil
}

// The deadline moves with each piece that is taken: a slow reader gets all, and
// one that takes nothing is cut, whatever there is to send.
func TestTheDeadlineMovesWithWhatIsTaken(t *testing.T) {
	w := &tardy{takes: 3}
	o := &sender{w: w, rc: http.NewResponseController(w), allow: time.Minute}
	if err := o.write(make([]byte, 10*atOnce)); !errors.Is(err, errCut) {
		t.Errorf("%v", err)
	}
	if len(w.deadlines) != 4 || !slices.IsSortedFunc(w.deadlines, time.Time.Compare) {
		t.Errorf("deadlines %v", w.deadlines)
	}
	if left := time.Until(w.deadlines[0]); left < 30*time.Second || left > time.Minute {
		t.Errorf("the first is in %s", left)
	}
}

// On a real connection a reader that takes nothing is cut, and what was lent to
// its answer is free.
func TestReadersThatTakeNothingAreCut(t *testing.T) {
	r := newRig(t, func(r *rig) { r.writeTime = 50 * time.Millisecond })
	r.http.Handler = r.Server
	r.plane.change(func() {
		r.plane.results["s-0a1b2c-7"] = session.Collected{Stdout: session.Text{bytes.Repeat([]byte("x"), 32<<20)}}
	})
	conn, err := net.Dial("tcp", r.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET /v1/sessions/s-0a1b2c-7/result HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\n\r\n", r.key["DEV"])
	lent := func() int64 {
		r.pressure.mu.Lock()
		defer r.pressure.mu.Unlock()
		return r.pressure.reads.used
	}
	r.await(t, "the answer holds memory", func() bool { return lent() > 0 })
	r.await(t, "it is cut", func() bool { return lent() == 0 })
}
