package store

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/session"
)

// What was forgotten is not only unlinked: once the store is closed no file of it
// has a byte of it.
func TestForgottenBytesAreOverwritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "enclave.db")
	s := open(t, path, Options{Every: never})
	out := bytes.Repeat([]byte("canary-of-output "), 10_000)
	n, err := s.Create(t.Context(), session.Session{ID: "s-1", Org: "acme", Phase: session.Pending}, session.Work{Argv: []string{"\xff"}, Code: ""}, audit.Data{})
	if err != nil {
		t.Fatal(err)
	}
	n = runSession(t, s, n)
	n.Phase, n.Finished = session.Succeeded, time.Unix(1, 0)
	n, err = s.Commit(t.Context(), n, &session.Collected{Stdout: session.Text{out}}, audit.Event{Type: audit.ResultCollected},
		audit.Event{Type: audit.WorkloadExited}, audit.Event{Type: audit.UsageMetered})
	if err != nil {
		t.Fatal(err)
	}
	n.Phase = session.TornDown
	if _, err := s.Commit(t.Context(), n, nil, audit.Event{Type: audit.SessionTornDown}); err != nil {
		t.Fatal(err)
	}
	has := func() bool {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		found := false
		for _, suffix := range []string{"", "-wal"} {
			b, err := os.ReadFile(path + suffix)
			if err != nil && !os.IsNotExist(err) {
				t.Fatal(err)
			}
			found = found || bytes.Contains(b, []byte("canary-of-output"))
		}
		s = open(t, path, Options{Every: never})
		return found
	}
	if !has() {
		t.Fatal("the output is not in the file before: this shows nothing")
	}
	if got, err := s.Forget(t.Context(), time.Now(), 10); err != nil || got != 1 {
		t.Fatalf("forgot %d, %v", got, err)
	}
	if has() {
		t.Error("the output is still in the file")
	}
}
