package control

import (
	"testing"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/request"
)

// Of several results the first valid one counts. That there were others, or
// ones that were none, is on record, and nothing is said where there were none.
func TestResultsThatAreNotTakenAreOnRecord(t *testing.T) {
	for code, want := range map[string]struct {
		json              string
		refused, repeated uint64
	}{
		"enclave-result 1": {"1", 0, 0},
		"enclave-result 1\nenclave-result 2\nenclave-result 3":                           {"1", 0, 2},
		"enclave-result 1e999\nenclave-result '\"\\ud800\"'\nenclave-result 2":           {"2", 2, 0},
		"enclave-result '{\"a\":1,\"a\":2}'":                                             {"", 1, 0},
		"enclave-result 1\nenclave-result nonsense\nenclave-result 2\nenclave-result 1x": {"1", 2, 1},
	} {
		p, _ := newPlane(t)
		s := runToEnd(t, p, request.Request{Code: code, Language: "bash"})
		r, _, err := p.Result(t.Context(), caller, s.ID)
		if err != nil || string(r.JSON) != want.json {
			t.Errorf("%s: result %s, %v", code, r.JSON, err)
		}
		events, err := p.Events(t.Context(), caller, s.ID, 0, 100)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			if e.Type == audit.ResultCollected && (e.Data.Refused != want.refused || e.Data.Repeated != want.repeated) {
				t.Errorf("%s: %d refused and %d repeated, want %+v", code, e.Data.Refused, e.Data.Repeated, want)
			}
		}
	}
}
