package webhook

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/enclave-run/enclave/internal/session"
)

// A box is an Outbox in memory.
type box struct {
	mu        sync.Mutex
	owed      map[int64]session.Delivery
	ended     chan int64 // each delivery that is no longer owed
	postponed chan session.Delivery
}

func newBox(ds ...session.Delivery) *box {
	b := &box{owed: map[int64]session.Delivery{}, ended: make(chan int64, len(ds)), postponed: make(chan session.Delivery, 1<<16)}
	for _, d := range ds {
		b.owed[d.ID] = d
	}
	return b
}

func (b *box) Deliveries(_ context.Context, due time.Time, limit int) ([]session.Delivery, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var ds []session.Delivery
	for _, d := range b.owed {
		if !d.Next.After(due) {
			ds = append(ds, d)
		}
	}
	slices.SortFunc(ds, func(a, b session.Delivery) int { return cmp.Or(a.Next.Compare(b.Next), cmp.Compare(a.ID, b.ID)) })
	return ds[:min(limit, len(ds))], nil
}

func (b *box) Postpone(_ context.Context, id int64, attempts int, next time.Time) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	d, ok := b.owed[id]
	if !ok {
		return session.ErrNotFound
	}
	d.Attempts, d.Next = attempts, next
	b.owed[id] = d
	select {
	case b.postponed <- d:
	default:
	}
	return nil
}

func (b *box) Delivered(_ context.Context, id int64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.owed[id]; ok {
		delete(b.owed, id)
		b.ended <- id
	}
	return nil
}

var then = time.Date(2026, 9, 1, 12, 0, 2, 500_000_000, time.UTC)

// owed is a delivery of org to url.
func owed(id int64, org, url string) session.Delivery {
	return session.Delivery{ID: id, Session: session.Name{Org: org, ID: fmt.Sprintf("s-0a1b2c-%d", id)}, URL: url}
}

// about is the session of d.
func about(d session.Delivery) session.Session {
	return session.Session{
		ID: d.Session.ID, Org: d.Session.Org, Phase: session.Killed, Outcome: session.Killed, KillReason: session.PidsExceeded,
		Labels: map[string]string{"team": "a<b"}, WebhookURL: d.URL,
		Created: then.Add(-2376544 * time.Microsecond), Finished: then,
	}
}

func (b *box) Session(_ context.Context, org, id string) (session.Session, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, d := range b.owed {
		if d.Session == (session.Name{Org: org, ID: id}) {
			return about(d), nil
		}
	}
	return session.Session{}, session.ErrNotFound
}

func testKey(t *testing.T) Key {
	t.Helper()
	raw, err := GenerateKey(bytes.NewReader(bytes.Repeat([]byte{7}, 1024)))
	if err != nil {
		t.Fatal(err)
	}
	k, err := ParseKey(raw)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// A rig is a Worker that works until the test ends, and what it said.
type rig struct {
	results chan string
	log     *syncBuffer
	stop    func() // waits
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func work(t *testing.T, b Outbox, c *http.Client, now func() time.Time) *rig {
	t.Helper()
	r := &rig{results: make(chan string, 1<<16), log: new(syncBuffer)}
	every := 5 * time.Millisecond
	if m, ok := b.(*box); ok && len(m.owed) > 100 {
		every = time.Second // the box sorts all it has at each look
	}
	w, err := NewWorker(Config{
		Outbox: b, Client: c, Key: testKey(t), Log: slog.New(slog.NewTextHandler(r.log, nil)),
		Attempted: func(result string) { r.results <- result },
		Every:     every, Now: now, Random: func() float64 { return 0.5 },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the worker: %v", err)
		}
	})
	t.Cleanup(r.stop)
	return r
}

// take returns what c has next, or fails if that takes a minute.
func take[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(time.Minute):
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

func TestKeysPrintNothing(t *testing.T) {
	raw, err := GenerateKey(bytes.NewReader(bytes.Repeat([]byte{7}, 1024)))
	if err != nil {
		t.Fatal(err)
	}
	k, err := ParseKey(raw)
	if err != nil {
		t.Fatal(err)
	}
	secret := strings.TrimSpace(strings.TrimPrefix(string(raw), privatePrefix))
	holder := struct {
		k Key
		K *Key
	}{k, &k}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		for _, v := range []any{k, &k, holder} {
			got := fmt.Sprintf(verb, v)
			if strings.Contains(got, secret) || strings.Contains(got, "070707") || strings.Contains(got, "7 7 7") {
				t.Errorf("%s prints %s", verb, got)
			}
		}
	}
	for _, bad := range []string{"", "whsk_", "whsk_AAAA", secret, "whpk_" + secret} {
		if _, err := ParseKey([]byte(bad)); err == nil || bad != "" && strings.Contains(err.Error(), bad) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
