package enclave

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"
)

const (
	// maxTries is how often a request is sent that is safe to send again.
	maxTries = 3
	// maxRetrying is how long after the first try another may begin.
	maxRetrying = 30 * time.Second
)

// A clock is what a Client waits by.
type clock struct {
	now  func() time.Time
	wait func(context.Context, time.Duration) error
}

// repeat calls try, which sends one request, up to tries times in all while the
// request may yet succeed, and returns the last error. Between two tries it
// waits for as long as the server asks.
func (c *Client) repeat(ctx context.Context, tries int, try func() error) error {
	began := c.clock.time()
	for n := 1; ; n++ {
		err := try()
		if err == nil || n == tries || ctx.Err() != nil || !transient(err) {
			return err
		}
		d := backoff(n, err)
		if c.clock.time().Add(d).Sub(began) > maxRetrying {
			return err
		}
		if end := c.clock.sleep(ctx, d); end != nil {
			return fmt.Errorf("%w: after %w", end, err)
		}
	}
}

// transient reports whether the same request may succeed if it is sent again:
// the connection broke, or the server is busy or about to be another.
func transient(err error) bool {
	if refused := (*Error)(nil); errors.As(err, &refused) {
		return refused.Status == http.StatusTooManyRequests || refused.Status == http.StatusServiceUnavailable
	}
	return !errors.Is(err, errProtocol)
}

// backoff returns how long to wait after the nth try, which ended with err: not
// before the first, then longer each time, up to 5 seconds; and no less than
// the server asks for.
func backoff(n int, err error) time.Duration {
	if n == 0 {
		return 0
	}
	d := min(50*time.Millisecond<<min(n-1, 10), 5*time.Second)
	if refused := (*Error)(nil); errors.As(err, &refused) {
		d = max(d, refused.RetryAfter)
	}
	return d
}

func (k clock) time() time.Time {
	if k.now != nil {
		return k.now()
	}
	return time.Now()
}

// sleep returns after d, or when ctx ends, with its error.
func (k clock) sleep(ctx context.Context, d time.Duration) error {
	if d == 0 {
		return ctx.Err()
	}
	if k.wait != nil {
		return k.wait(ctx, d)
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
