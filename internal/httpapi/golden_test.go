package httpapi

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/control"
	"github.com/enclave-run/enclave/internal/request"
	"github.com/enclave-run/enclave/internal/session"
)

// compact returns a golden document without its white space.
func compact(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile("../../api/testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	var c bytes.Buffer
	if err := json.Compact(&c, b); err != nil {
		t.Fatal(err)
	}
	return c.String()
}

// What the server says of its own types is what all SDKs are tested with.
func TestServerProducesTheGoldenDocuments(t *testing.T) {
	limits := session.Limits{Pids: 256, MemoryMB: 512, CPUMillis: 1000, CPUSeconds: 60, WallSeconds: 300, DiskMB: 512, OutputBytes: 10_000_000, EgressBytes: 100_000_000}
	pending := session.Session{
		ID: "s-0a1b2c-9", Org: "acme", CreatedBy: "ada", Phase: session.Pending, Language: "python", Limits: limits,
		Egress: session.Egress{Mode: "deny_all"}, Backend: "gvisor", Isolation: "userspace_kernel", Created: created,
	}
	killed := pending
	killed.ID, killed.Phase, killed.Outcome, killed.KillReason = "s-0a1b2c-8", session.TornDown, session.Killed, session.PidsExceeded
	killed.Limits.Pids = 64
	killed.Started = time.Date(2026, 9, 1, 14, 0, 1, 0, time.FixedZone("", 7200)) // written in UTC
	killed.Finished = killed.Started.Add(300 * time.Millisecond)
	succeeded := pending
	succeeded.ID, succeeded.Phase, succeeded.Outcome = "s-0a1b2c-7", session.Succeeded, session.Succeeded
	succeeded.Egress = session.Egress{Mode: "allowlist", Allow: []string{"api.example.com"}}
	succeeded.Labels = map[string]string{"team": "payments"}
	succeeded.Started = time.Date(2026, 9, 1, 12, 0, 1, 0, time.UTC)
	succeeded.Finished = succeeded.Started.Add(1357456 * time.Microsecond)

	zero, two := 0, 2
	result := session.Collected{
		ExitCode: &zero, Stdout: session.Text{[]byte("hello <wor"), []byte("ld>\n")}, Duration: 1234567 * time.Microsecond,
		JSON: json.RawMessage(`{"answer":285,"text":"größer & kleiner","list":[1,2.5,null,true]}`),
	}
	denials := []audit.Event{
		{Type: audit.EgressDenied, Data: audit.Data{Host: "evil.example.com", Protocol: "dns", Reason: "not_allowed", Count: 1}},
		{Type: audit.EgressDenied, Data: audit.Data{Host: "169.254.169.254", Port: 80, Protocol: "tcp", Reason: "reserved_address", Count: 3}},
	}
	binary := session.Collected{ExitCode: &two, Stdout: session.Text{[]byte("\x00\xffA")}, Truncated: true, Duration: 7 * time.Millisecond}
	lost := session.Collected{Duration: 300 * time.Millisecond}

	r := newRig(t)
	for name, c := range map[string]struct {
		s       session.Session
		r       session.Collected
		denials []audit.Event
		path    string
	}{
		"session_killed.json":    {killed, lost, nil, ""},
		"session_succeeded.json": {succeeded, result, denials, ""},
		"result.json":            {succeeded, result, denials, "/result"},
		"result_binary.json":     {succeeded, binary, nil, "/result"},
		"result_killed.json":     {killed, lost, nil, "/result"},
	} {
		r.plane.change(func() {
			r.plane.sessions = []session.Session{c.s}
			r.plane.results = map[string]session.Collected{c.s.ID: c.r}
			r.plane.events = map[string][]audit.Event{c.s.ID: c.denials}
		})
		_, got := r.do(t, "GET", "/v1/sessions/"+c.s.ID+c.path, "DEV", nil)
		if want := compact(t, name); strings.TrimSuffix(got, "\n") != want {
			t.Errorf("%s:\n%s\nwant\n%s", name, got, want)
		}
	}
	notFound, _ := problemOf(session.ErrNotFound)
	notPositive, _ := problemOf(&request.FieldError{Field: "limits.pidsLimit", Detail: "0 is not positive; leave the field out for the default of 256"})
	proof, err := publicConsistency(aConsistency())
	if err != nil {
		t.Fatal(err)
	}
	for name, v := range map[string]any{
		"session_pending.json": publicSession(pending),
		"consistency.json":     proof, "inclusion.json": publicInclusion(anInclusion()),
		"queue.json": publicQueue(control.Queue{Running: 128, MaxRunning: 128, Waiting: 4, Yours: control.OwnQueue{
			Running: 2, Waiting: 1, Concurrent: 8, Items: []control.QueuedItem{{ID: pending.ID, Position: 1, Waiting: 1357456 * time.Microsecond, For: control.LackMemory}},
		}}),
		"usage.json": publicReport([]session.Usage{
			{Org: "acme", Day: created.AddDate(0, 0, -1), Sessions: 2, CPUSeconds: 1.25, WallSeconds: 3.000001,
				PeakMemoryBytes: 45711360, BytesIn: 1024, BytesOut: 77, OutputBytes: 6},
			{Org: "acme", Day: created, Sessions: 1, WallSeconds: 300},
		}, control.Allowance{
			Stored: session.Storage{Requests: 1000, Results: 1, Output: 10, Records: 100}, Reserved: 11572864, CPUToday: 1.25,
			Quotas: control.Quotas{Concurrent: 8, PerMinute: 600, Waiting: 1000, Storage: 1 << 30},
		}),
		"problem.json": notFound, "problem_field.json": notPositive,
	} {
		got, err := encode(v)
		if err != nil {
			t.Fatal(err)
		}
		if want := compact(t, name); strings.TrimSuffix(string(got), "\n") != want {
			t.Errorf("%s:\n%s\nwant\n%s", name, got, want)
		}
	}
}

// The golden stream is what the server sends for the updates that it tells of.
func TestServerProducesTheGoldenStream(t *testing.T) {
	want, err := os.ReadFile("../../api/testdata/stream.sse")
	if err != nil {
		t.Fatal(err)
	}
	var page struct{ Items []audit.Event }
	if err := json.Unmarshal([]byte(compact(t, "events.json")), &page); err != nil {
		t.Fatal(err)
	}
	var result enclave.Result
	if err := json.Unmarshal([]byte(compact(t, "result.json")), &result); err != nil {
		t.Fatal(err)
	}
	result.Stdout, result.StdoutSize, result.StderrSize = "", 14, 3
	w := httptest.NewRecorder()
	out := &events{sender: &sender{w: w, rc: http.NewResponseController(w), allow: time.Minute}}
	cur := control.Cursor{}
	step := func(u control.Update, r *enclave.Result) {
		t.Helper()
		if err := out.update(cur, u, r); err != nil {
			t.Fatal(err)
		}
		cur = u.Cursor
	}
	if err := out.comment("stream of s-0a1b2c-7"); err != nil {
		t.Fatal(err)
	}
	step(control.Update{Phases: []session.Phase{session.Pending}, Cursor: control.Cursor{Phases: 1}}, nil)
	if err := out.comment("alive"); err != nil {
		t.Fatal(err)
	}
	step(control.Update{
		Phases: []session.Phase{session.Running}, Audit: page.Items[:1], Stdout: []byte("hello <world>"),
		Cursor: control.Cursor{Phases: 2, Audit: 1, Stdout: 13},
	}, nil)
	step(control.Update{Stdout: []byte("\n"), Stderr: []byte("\x00\xffA"), Cursor: control.Cursor{Phases: 2, Audit: 1, Stdout: 14, Stderr: 3}}, nil)
	step(control.Update{Phases: []session.Phase{session.Succeeded}, Cursor: control.Cursor{Phases: 3, Audit: 1, Stdout: 14, Stderr: 3}}, nil)
	step(control.Update{End: true, Cursor: control.Cursor{Phases: 3, Audit: 1, Stdout: 14, Stderr: 3, Result: true}}, &result)
	if got := w.Body.String(); got != string(want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
