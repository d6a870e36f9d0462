package webhook

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/session"
	"github.com/enclave-run/enclave/internal/store"
)

// Sessions have up to 110 KB, which their creator chose. What waits for an
// endpoint that never answers is not held with them.
func TestDeliveriesThatWaitHoldNothingOfTheirSessions(t *testing.T) {
	came := make(chan struct{}, maxInFlight)
	stop := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		came <- struct{}{}
		<-stop
	}))
	defer srv.Close()
	defer close(stop)
	s, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "db"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	labels, rules := map[string]string{}, []string(nil)
	for i := range 64 {
		labels[fmt.Sprintf("%d%s", i, strings.Repeat("k", 250))] = strings.Repeat("v", 256)
	}
	for i := range 256 {
		rules = append(rules, fmt.Sprintf("h%d.%s.example:443", i, strings.Repeat("x", 60)))
	}
	const many = heldByTenant
	var group errgroup.Group
	group.SetLimit(64)
	for i := range many {
		group.Go(func() error {
			n, err := s.Create(t.Context(), session.Session{
				ID: fmt.Sprintf("s-0a1b2c-%d", i+1), Org: "acme", Phase: session.Pending, Created: time.Now(), Sandbox: "x",
				WebhookURL: srv.URL, Labels: labels, Egress: session.Egress{Mode: "allow_list", Allow: rules},
			}, session.Work{}, audit.Data{})
			if err != nil {
				return err
			}
			if n, err = n.To(session.Killed); err != nil {
				return err
			}
			n.Finished = time.Now()
			_, err = s.Commit(t.Context(), n, &session.Collected{}, audit.Event{Type: audit.ResultCollected}, audit.Event{Type: audit.WorkloadExited}, audit.Event{Type: audit.UsageMetered})
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}

	before := heap()
	box := &looked{Outbox: s, enough: make(chan struct{})}
	work(t, box, local(t, nil, time.Hour), time.Now)
	for range perHost {
		take(t, came)
	}
	take(t, box.enough) // all are in memory
	const each = 4 << 10
	if held := heap() - before; held > many*each {
		t.Errorf("%d deliveries hold %d bytes, of which each may hold %d", many, held, each)
	}
}

func heap() int64 {
	runtime.GC()
	runtime.GC() // what has a finalizer goes with the second
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// A looked says when its deliveries were asked for three times: what the first
// look found is in memory then.
type looked struct {
	Outbox
	mu     sync.Mutex
	times  int
	enough chan struct{}
}

func (l *looked) Deliveries(ctx context.Context, due time.Time, limit int) ([]session.Delivery, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.times++; l.times == 3 {
		close(l.enough)
	}
	return l.Outbox.Deliveries(ctx, due, limit)
}
