package webhook

import (
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/session"
	"github.com/enclave-run/enclave/internal/store"
)

// A process that dies after the commit of an end and before its delivery leaves
// it to the next one; tearing the session down changes nothing of that.
func TestARestartDeliversWhatIsOwedOnce(t *testing.T) {
	came := make(chan string, 8)
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { came <- r.Header.Get("webhook-id") }))
	defer srv.Close()
	path := filepath.Join(t.TempDir(), "db")
	open := func() *store.Store {
		s, err := store.Open(t.Context(), path, store.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	first := open()
	s, err := first.Create(t.Context(), session.Session{
		ID: "s-0a1b2c-1", Org: "acme", Phase: session.Pending, Created: time.Now(), Sandbox: "x", WebhookURL: srv.URL,
	}, session.Work{}, audit.Data{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []session.Phase{session.Killed, session.TornDown} {
		if s, err = s.To(p); err != nil {
			t.Fatal(err)
		}
		s.Finished = time.Now()
		var res *session.Collected
		events := []audit.Event{{Type: audit.SessionTornDown}}
		if p == session.Killed {
			res = &session.Collected{}
			events = []audit.Event{{Type: audit.ResultCollected}, {Type: audit.WorkloadExited}, {Type: audit.UsageMetered}}
		}
		if s, err = first.Commit(t.Context(), s, res, events...); err != nil {
			t.Fatal(err)
		}
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}

	second := open()
	r := work(t, second, local(t, nil, time.Minute), time.Now)
	if id := take(t, came); id != "ended_s-0a1b2c-1" {
		t.Error(id)
	}
	if got := take(t, r.results); got != delivered {
		t.Error(got)
	}
	r.stop()
	if owed, err := second.Deliveries(t.Context(), time.Now().Add(72*time.Hour), 10); err != nil || len(owed) != 0 {
		t.Errorf("owed still: %v, %v", owed, err)
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	if len(came) != 0 {
		t.Errorf("it came %d times more", len(came))
	}
}
