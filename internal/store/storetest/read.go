package storetest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/session"
)

func eventsAfter(t *testing.T, s Store) {
	n := start(t, s, create(t, s, "acme", "s-000000-1"))
	f, zero := 0.1+0.2, int64(0)
	data := []audit.Data{
		{Host: "evil.example.com", Port: 443, Protocol: "tcp", Reason: "not_allowed", Count: 1},
		{Host: "a\xff\ufffd<&>\u2028b", Protocol: "dns"},
		{CPUSeconds: &f, WallSeconds: new(float64), BytesIn: &zero},
	}
	for _, d := range data {
		if err := s.Record(t.Context(), n.ID, audit.EgressDenied, d); err != nil {
			t.Fatal(err)
		}
	}
	all := events(t, s, "acme", n.ID)
	if len(all) != 5 {
		t.Fatalf("%d events, want 5", len(all))
	}
	if all[3].Data.Host != "a\ufffd\ufffd<&>\u2028b" || *all[4].Data.CPUSeconds != f || *all[4].Data.BytesIn != 0 {
		t.Errorf("data %+v", all[3:])
	}
	for _, e := range all {
		b, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		var again audit.Event
		if err := json.Unmarshal(b, &again); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(e, again); d != "" || e.Time.Location() != time.UTC || e.Time.Nanosecond()%1000 != 0 {
			t.Errorf("event at %v is another after JSON: %s", e.Time, d)
		}
	}
	for after := range uint64(7) {
		for limit := range 7 {
			got, err := s.Events(t.Context(), "acme", n.ID, after, limit)
			if err != nil {
				t.Fatal(err)
			}
			from := min(int(after), len(all))
			want := all[from:min(from+limit, len(all))]
			if len(want) != len(got) || len(got) > 0 && cmp.Diff(want, got) != "" {
				t.Errorf("after %d, limit %d: %d events, want %d", after, limit, len(got), len(want))
			}
		}
	}
	for _, c := range []struct {
		after uint64
		limit int
	}{{1 << 63, 10}, {1<<64 - 1, 10}, {0, -1}} {
		if got, err := s.Events(t.Context(), "acme", n.ID, c.after, c.limit); err != nil || len(got) != 0 {
			t.Errorf("after %d, limit %d: %d events, %v", c.after, c.limit, len(got), err)
		}
	}
}

func results(t *testing.T, s Store) {
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	big := bytes.Repeat(append(all, "\xff\xfe\x00'\""...), 10<<20/261)
	zero, minus := 0, -1
	for i, want := range []session.Collected{
		{},
		{ExitCode: &zero, Stdout: session.Text{[]byte("hi\n")}, JSON: json.RawMessage(`{"answer":285}`), Duration: 1234567},
		{ExitCode: &minus, Stdout: session.Text{all[:100], nil, all[100:]}, Stderr: session.Text{[]byte("\xff\xc0")}, JSON: json.RawMessage("null"), Truncated: true, Duration: 1 << 50},
		{Stdout: session.Text{big}, Stderr: session.Text{{0}, big}},
	} {
		n := start(t, s, create(t, s, "acme", fmt.Sprintf("s-000000-%d", i)))
		_, err := s.Result(t.Context(), "acme", n.ID)
		wantErr(t, "a result before the end", err, session.ErrNotFound)
		_, err = s.Output(t.Context(), "acme", n.ID, 0, 0, 1)
		wantErr(t, "output before the end", err, session.ErrNotFound)
		if _, err := s.Commit(t.Context(), n, &want); err == nil {
			t.Error("a result was committed without an end")
		}
		n = step(t, n, session.Failed)
		if _, err := s.Commit(t.Context(), n, &want, ending()...); err != nil {
			t.Fatal(err)
		}
		for _, when := range []string{"at once", "after a restart"} {
			got, err := s.Result(t.Context(), "acme", n.ID)
			if err != nil {
				t.Fatal(err)
			}
			parts(t, s, n.ID, want)
			small := session.Result{
				ExitCode: want.ExitCode, JSON: want.JSON, Truncated: want.Truncated, Duration: want.Duration,
				StdoutLength: want.Stdout.Len(), StderrLength: want.Stderr.Len(),
			}
			if d := cmp.Diff(small, got); d != "" {
				t.Errorf("result %d %s: %s", i, when, d)
			}
			s = s.Restart(t)
		}
	}
}

func work(t *testing.T, s Store) {
	for i, want := range []session.Work{
		{},
		{Code: "print('\xff\x00é')", Argv: []string{"a", "", "\xfe"}, Files: map[string]string{"a/b": "\x00\xff", "c": "", "\xc0": "x"}},
		{Code: strings.Repeat("x", 5<<20)},
	} {
		id := fmt.Sprintf("s-000000-%d", i)
		if _, err := s.Create(t.Context(), pending("acme", id), want, audit.Data{}); err != nil {
			t.Fatal(err)
		}
		got, err := s.Work(t.Context(), "acme", id)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("work %d: %.1000s", i, d)
		}
	}
}

func pages(t *testing.T, s Store) {
	var want []string
	for i := range 25 {
		// The clock goes backwards: newest is who was created last.
		n := pending("acme", fmt.Sprintf("s-%06x-%d", 99-i, i))
		n.Created = n.Created.Add(-time.Duration(i) * time.Hour)
		if _, err := s.Create(t.Context(), n, session.Work{}, audit.Data{}); err != nil {
			t.Fatal(err)
		}
		want = append([]string{n.ID}, want...)
		create(t, s, "other", fmt.Sprintf("s-ffffff-%d", i))
	}
	for _, limit := range []int{1, 7, 25, 100} {
		var got []string
		before := ""
		for range 100 {
			page, err := s.Sessions(t.Context(), "acme", before, limit)
			if err != nil {
				t.Fatal(err)
			}
			if len(page) > limit {
				t.Fatalf("a page of %d, limit %d", len(page), limit)
			}
			if len(page) == 0 {
				break
			}
			for _, n := range page {
				got = append(got, n.ID)
			}
			before = page[len(page)-1].ID
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("limit %d: %s", limit, d)
		}
	}
	for _, limit := range []int{0, -1} {
		if page, err := s.Sessions(t.Context(), "acme", "", limit); err != nil || len(page) != 0 {
			t.Errorf("limit %d: %d sessions, %v", limit, len(page), err)
		}
	}
}

func unended(t *testing.T, s Store) {
	create(t, s, "acme", "s-000000-1")
	stored, err := s.Storage(t.Context(), "acme")
	if err != nil {
		t.Fatal(err)
	}
	work := stored.Requests
	start(t, s, create(t, s, "other", "s-000000-2"))
	want := []session.Unended{
		{Name: session.Name{Org: "acme", ID: "s-000000-1"}, Phase: session.Pending, Request: work},
		{Name: session.Name{Org: "other", ID: "s-000000-2"}, Phase: session.Running, Request: work},
	}
	ended := end(t, s, start(t, s, create(t, s, "acme", "s-000000-3")))
	failed := create(t, s, "acme", "s-000000-4")
	if _, err := s.Commit(t.Context(), step(t, failed, session.Failed), nil, ending()...); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Commit(t.Context(), step(t, ended, session.TornDown), nil, audit.Event{Type: audit.SessionTornDown}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		got, err := s.Unended(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
		s = s.Restart(t)
	}
}

func restart(t *testing.T, s Store) {
	n := end(t, s, start(t, s, create(t, s, "acme", "s-000000-1")))
	running := start(t, s, create(t, s, "acme", "s-000000-2"))
	want := events(t, s, "acme", n.ID)
	s = s.Restart(t)
	got, err := s.Session(t.Context(), "acme", n.ID)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(n, got); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(want, events(t, s, "acme", n.ID)); d != "" {
		t.Error(d)
	}
	if w, err := s.Work(t.Context(), "acme", n.ID); err != nil || w.Code != "print(1)" {
		t.Errorf("work %+v, %v", w, err)
	}
	if o, err := s.Output(t.Context(), "acme", n.ID, 0, 0, 10); err != nil || string(o.Stdout) != "hi\n" {
		t.Errorf("output %+v, %v", o, err)
	}
	wantErr(t, "a record after the end, after a restart", s.Record(t.Context(), n.ID, audit.EgressDenied, audit.Data{}), session.ErrConflict)
	if err := s.Record(t.Context(), running.ID, audit.EgressDenied, audit.Data{}); err != nil {
		t.Error(err)
	}
	end(t, s, running)
	if got := types(events(t, s, "acme", running.ID)); got != "session_created sandbox_started egress_denied result_collected workload_exited usage_metered" {
		t.Errorf("record: %s", got)
	}
}

// parts reads the output of a session in parts, and beyond its end.
func parts(t *testing.T, s Store, id string, want session.Collected) {
	t.Helper()
	var stdout, stderr []byte
	for {
		o, err := s.Output(t.Context(), "acme", id, int64(len(stdout)), int64(len(stderr)), 1<<20-7)
		if err != nil {
			t.Fatal(err)
		}
		if o.StdoutLength != want.Stdout.Len() || o.StderrLength != want.Stderr.Len() {
			t.Fatalf("output has %d and %d bytes, want %d and %d", o.StdoutLength, o.StderrLength, want.Stdout.Len(), want.Stderr.Len())
		}
		if len(o.Stdout) > 1<<20-7 || len(o.Stderr) > 1<<20-7 {
			t.Fatalf("a part has %d and %d bytes", len(o.Stdout), len(o.Stderr))
		}
		if len(o.Stdout)+len(o.Stderr) == 0 {
			break
		}
		stdout, stderr = append(stdout, o.Stdout...), append(stderr, o.Stderr...)
	}
	if !bytes.Equal(stdout, bytes.Join(want.Stdout, nil)) || !bytes.Equal(stderr, bytes.Join(want.Stderr, nil)) {
		t.Error("the parts of the output are not the output")
	}
	record := len(events(t, s, "acme", id))
	if o, err := s.Output(t.Context(), "acme", id, 0, 0, 0); err != nil || len(o.Stdout)+len(o.Stderr) != 0 || o.JSONLength != int64(len(want.JSON)) || o.Events != int64(record) {
		t.Errorf("without any part: %d bytes, JSON of %d, %d events of %d, error %v", len(o.Stdout)+len(o.Stderr), o.JSONLength, o.Events, record, err)
	}
	if o, err := s.Output(t.Context(), "acme", id, 1<<62, 1<<62, 1<<62); err != nil || len(o.Stdout)+len(o.Stderr) != 0 {
		t.Errorf("%d bytes beyond the end, error %v", len(o.Stdout)+len(o.Stderr), err)
	}
	if _, err := s.Output(t.Context(), "acme", id, -1, 0, 1); err == nil {
		t.Error("a negative offset was accepted")
	}
	_, err := s.Output(t.Context(), "umbrella", id, 0, 0, 1)
	wantErr(t, "another organisation's output", err, session.ErrNotFound)
}
