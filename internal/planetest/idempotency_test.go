package planetest_test

import (
	"encoding/json"
	"errors"
	"sync"
	"testing"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/auth"
	"github.com/enclave-run/enclave/internal/planetest"
)

// Fifty clients that send one request with one key at once have one session,
// which runs once; and it is the same after a restart.
func TestOneKeyIsOneSession(t *testing.T) {
	dir := t.TempDir()
	p, err := planetest.Open(dir, planetest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	c := client(p)
	q := enclave.SessionRequest{Code: "enclave.result(1)", IdempotencyKey: "order-1"}
	ids := make([]string, 50)
	var all sync.WaitGroup
	begin := make(chan struct{})
	for i := range ids {
		all.Go(func() {
			<-begin
			h, err := c.Run(t.Context(), q)
			if err != nil {
				t.Error(err)
				return
			}
			ids[i] = h.ID()
		})
	}
	close(begin)
	all.Wait()
	for _, id := range ids {
		if id != ids[0] || id == "" {
			t.Errorf("sessions %q and %q", ids[0], id)
		}
	}
	if page, err := c.List(t.Context(), enclave.ListOptions{}); err != nil || len(page.Items) != 1 {
		t.Errorf("%d sessions, %v", len(page.Items), err)
	}

	// Another request with the key, in whatever respect, is refused.
	for name, other := range map[string]enclave.SessionRequest{
		"code":   {Code: "enclave.result(2)", IdempotencyKey: "order-1"},
		"limits": {Code: q.Code, Limits: enclave.Limits{PidsLimit: 99}, IdempotencyKey: "order-1"},
		"labels": {Code: q.Code, Labels: map[string]string{"a": "b"}, IdempotencyKey: "order-1"},
		"egress": {Code: q.Code, Egress: enclave.Egress{Mode: enclave.Allowlist, Allow: []string{"example.com"}}, IdempotencyKey: "order-1"},
	} {
		if _, err := c.Run(t.Context(), other); !errors.Is(err, enclave.ErrIdempotency) {
			t.Errorf("another %s: %v", name, err)
		}
	}

	// The key is the organisation's: another has one of the same name.
	key, err := p.NewKey("globex", auth.Developer)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := (&enclave.Client{BaseURL: p.URL, APIKey: key}).Run(t.Context(), q)
	if err != nil || theirs.ID() == ids[0] {
		t.Errorf("another organisation's: %v, %v", theirs, err)
	}
	if _, err := c.Handle(ids[0]).Result(t.Context()); err != nil {
		t.Error(err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}

	again := open(t, dir)
	h, err := client(again).Run(t.Context(), q)
	if err != nil || h.ID() != ids[0] || h.Session().Outcome != enclave.Succeeded {
		t.Errorf("after a restart: %+v, %v; want session %s, which has succeeded", h, err, ids[0])
	}
}

// The same request spelt otherwise is the same request.
func TestSpellingOfARequestDoesNotCount(t *testing.T) {
	p := open(t, t.TempDir())
	var first string
	for _, body := range []string{
		`{"code":"pass","labels":{"a":"1","b":"2"},"idempotencyKey":"k"}`,
		` { "idempotencyKey" : "k", "labels": {"b":"2","a":"1"}, "code": "p\u0061ss" } `,
	} {
		resp, text := ask(t, p, "POST", "/v1/sessions", p.Key, body)
		var s enclave.Session
		if err := json.Unmarshal([]byte(text), &s); err != nil || resp.StatusCode != 201 {
			t.Fatalf("%s %s", resp.Status, text)
		}
		if first == "" {
			first = s.ID
		}
		if s.ID != first {
			t.Errorf("%s made another session", body)
		}
	}
}
