package corpus

import (
	"context"
	"testing"
	"time"

	"github.com/enclave-run/enclave"
)

// A clean workload must succeed under the same limits as the attacks: without
// these a sandbox in which nothing works would have contained everything.
type clean struct{ name, language, code, want string }

var cleans = []clean{
	{"arithmetic", "", "enclave.result(sum(i * i for i in range(10)))", "285"},
}

// runClean runs each and returns how many succeeded.
func runClean(t *testing.T, w *world) (succeeded int) {
	for _, c := range cleans {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if err := w.clean(ctx, c); err != "" {
				t.Error(err)
				return
			}
			succeeded++
		})
	}
	return succeeded
}

// clean runs c and returns what is wrong with how it ended, or "".
func (w *world) clean(ctx context.Context, c clean) string {
	h, err := w.client.Run(ctx, enclave.SessionRequest{Code: c.code, Language: c.language})
	if err != nil {
		return err.Error()
	}
	r, err := h.Result(ctx)
	if err != nil {
		return err.Error()
	}
	s, err := h.Refresh(ctx)
	if err != nil {
		return err.Error()
	}
	if err := h.Teardown(ctx); err != nil {
		return err.Error()
	}
	if s.Outcome != enclave.Succeeded || string(r.JSON) != c.want {
		return "ended as " + string(s.Outcome) + " " + s.KillReason + " with " + string(r.JSON) + ": " + r.Stderr
	}
	return ""
}
