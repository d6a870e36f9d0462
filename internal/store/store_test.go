package store

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/session"
)

func TestSmoke(t *testing.T) {
	ctx := context.Background()
	s, err := Open(ctx, filepath.Join(t.TempDir(), "a b?c#d%.db"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	n, err := s.Create(ctx, session.Session{ID: "s-1", Org: "o", Phase: session.Pending}, session.Work{Code: "x"}, audit.Data{})
	if err != nil {
		t.Fatal(err)
	}
	n.Phase = session.Running
	if n, err = s.Commit(ctx, n, nil, audit.Event{Type: audit.SandboxStarted}); err != nil {
		t.Fatal(err)
	}
	if err := s.Record(ctx, "s-1", audit.EgressDenied, audit.Data{Host: "x"}); err != nil {
		t.Fatal(err)
	}
	t.Log(s.Events(ctx, "o", "s-1", 0, 100))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}
