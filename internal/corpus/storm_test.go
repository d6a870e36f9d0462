package corpus

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/auth"
	quotas "github.com/enclave-run/enclave/internal/control"
	"github.com/enclave-run/enclave/internal/planetest"
)

// A storm is a tenant that asks for many sessions at once, and what it got.
type storm struct{ created, refused, other int }

// storms is how many sessions the tenant of E20 asks for.
const storms = 1000

// createStorm is E20: one tenant asks for a thousand sessions while another runs
// twenty, one after the other.
func createStorm(ctx context.Context, r *run) error {
	calm, err := twenty(ctx, r.world.client)
	if err != nil {
		return fmt.Errorf("the neighbour alone: %w", err)
	}
	key, err := r.world.plane.NewKey("stormers", auth.Owner)
	if err != nil {
		return err
	}
	var got storm
	var wg sync.WaitGroup
	wg.Go(func() { got = ask(ctx, r.world.plane.URL, key) })
	beside, err := twenty(ctx, r.world.client)
	wg.Wait()
	if err != nil {
		r.find(peerDoS, "the neighbour: %v", err)
	}
	r.proof("%d sessions were created, %d refused with 429 and when to come again", got.created, got.refused)
	r.proof("the neighbour's slowest of twenty took %s alone and %s beside the storm", calm, beside)
	if got.created+got.refused != storms {
		r.find(infra, "%+v", got)
	}
	if most := 700; got.created > most { // 600 a minute, and what comes back meanwhile
		r.find(hostDoS, "%d sessions of one tenant were created at once, of at most %d", got.created, most)
	}
	return nil
}

// ask creates sessions as fast as ten connections can.
func ask(ctx context.Context, url, key string) (got storm) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			for range storms / 10 {
				status, after := create(ctx, url, key)
				mu.Lock()
				switch {
				case status == http.StatusCreated:
					got.created++
				case status == http.StatusTooManyRequests && after != "":
					got.refused++
				default:
					got.other++
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return got
}

// create asks for a session, once.
func create(ctx context.Context, url, key string) (status int, after string) {
	req, err := http.NewRequestWithContext(ctx, "POST", url+"/v1/sessions", strings.NewReader(`{"code":"pass"}`))
	if err != nil {
		return 0, ""
	}
	req.Header.Set("Authorization", "Bearer "+key)
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		return 0, ""
	}
	defer resp.Body.Close()
	_ = readAll(resp.Body)
	return resp.StatusCode, resp.Header.Get("Retry-After")
}

// twenty runs twenty sessions, one after the other, and returns how long the
// slowest took.
func twenty(ctx context.Context, c *enclave.Client) (time.Duration, error) {
	var slowest time.Duration
	for range 20 {
		start := time.Now()
		h, err := c.Run(ctx, enclave.SessionRequest{Code: "enclave.result(1)"})
		if err != nil {
			return 0, err
		}
		if _, err := h.Result(ctx); err != nil {
			return 0, err
		}
		if err := h.Teardown(ctx); err != nil {
			return 0, err
		}
		slowest = max(slowest, time.Since(start))
	}
	return slowest.Round(time.Millisecond), nil
}

// stormWithoutQuotas is the control of E20.
func stormWithoutQuotas(ctx context.Context, a *attack, w *world) *run {
	r := newControl(a, w, "control: no quotas")
	if r.infra != nil {
		return r
	}
	dir, err := os.MkdirTemp("/var/tmp", ours)
	if err != nil {
		r.infra = err
		return r
	}
	r.cleanup(func() { os.RemoveAll(dir) })
	plane, err := planetest.Open(dir, planetest.Config{Quotas: quotas.Quotas{PerMinute: quotas.Unlimited, Waiting: 2 * storms}})
	if err != nil {
		r.infra = err
		return r
	}
	other := *w
	other.plane, other.client = plane, &enclave.Client{BaseURL: plane.URL, APIKey: plane.Key}
	r.world = &other
	r.infra = errors.Join(createStorm(ctx, r), plane.Close())
	return r
}
