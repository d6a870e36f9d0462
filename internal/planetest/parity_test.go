package planetest_test

import (
	"encoding/json"
	"net/http"
	"testing"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/parity"
)

// Who checks a certificate computes what a server puts on record of a request. If
// they part, every certificate is refused.
func TestAServerRecordsTheHashThatACertificateIsCheckedBy(t *testing.T) {
	p := open(t, t.TempDir())
	for _, w := range parity.Workloads() {
		body, err := w.Request()
		if err != nil {
			t.Fatal(err)
		}
		var s enclave.Session
		answer, raw := ask(t, p, http.MethodPost, "/v1/sessions", p.Key, string(body))
		if err := json.Unmarshal([]byte(raw), &s); err != nil || answer.StatusCode != http.StatusCreated {
			t.Fatalf("%s: %s, %v", w.Name, answer.Status, err)
		}
		events, err := client(p).Audit(t.Context(), s.ID)
		if err != nil || len(events) == 0 {
			t.Fatalf("%s: %v, %v", w.Name, events, err)
		}
		var created struct{ RequestHash string }
		if err := json.Unmarshal(events[0].Data, &created); err != nil {
			t.Fatal(err)
		}
		asked, err := w.Asked()
		if err != nil || created.RequestHash != asked.Hash() {
			t.Errorf("%s is recorded as %q, and checked by %q, %v", w.Name, created.RequestHash, asked.Hash(), err)
		}
		if _, err := client(p).Teardown(t.Context(), s.ID); err != nil {
			t.Fatal(err)
		}
	}
}
