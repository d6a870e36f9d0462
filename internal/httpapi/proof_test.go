package httpapi

import (
	"bytes"
	"net/http"
	"slices"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/enclave-run/enclave/internal/audit"
)

const aNote = "enclave.local/0a1b2c\n9\nq6urq6urq6urq6urq6urq6urq6urq6urq6urq6urq6s=\n\n— enclave.local/0a1b2c 3q2+78nJycnJyQ==\n"

func hashOf(b byte) (h tlog.Hash) { copy(h[:], bytes.Repeat([]byte{b}, len(h))); return h }

// aConsistency has the shape of a proof, and proves nothing.
func aConsistency() audit.Consistency {
	return audit.Consistency{
		From: 3, To: 9, Checkpoint: []byte(aNote), Proof: tlog.TreeProof{hashOf(1), hashOf(2)},
		Rotations: []audit.Rotation{{
			Event: audit.Event{
				Session: audit.LogRecord, Seq: 1, Time: time.Date(2026, 9, 1, 12, 0, 0, 5000, time.UTC), Type: audit.KeyRotated,
				Data: audit.Data{
					OldKey: "enclave.local/0a1b2c+deadbeef+AQ==", NewKey: "enclave.local/0a1b2c+cafef00d+Ag==",
					OldSignature: "b2xk", NewSignature: "bmV3",
				},
				Hash: "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff",
			},
			Leaf: audit.LeafAt{Index: 4, Proof: tlog.RecordProof{hashOf(3)}},
		}},
	}
}

func anInclusion() audit.Inclusion {
	return audit.Inclusion{Index: 2, Size: 9, Proof: tlog.RecordProof{hashOf(4), hashOf(5)}, Leaf: hashOf(6), Checkpoint: []byte(aNote)}
}

func TestSizesOfALogReachThePlane(t *testing.T) {
	r := newRig(t)
	for path, want := range map[string]string{
		"/v1/audit/consistency":                                    "Consistency 0 0",
		"/v1/audit/consistency?from=3&to=9":                        "Consistency 3 9",
		"/v1/sessions/s-0a1b2c-7/audit/12/proof":                   "Inclusion 12 0",
		"/v1/sessions/s-0a1b2c-7/audit/1/proof?size=9":             "Inclusion 1 9",
		"/v1/audit/consistency?from=03":                            "",
		"/v1/audit/consistency?from=-3":                            "",
		"/v1/audit/consistency?from=3&from=4":                      "",
		"/v1/audit/consistency?from=9223372036854775808":           "",
		"/v1/audit/consistency?to=":                                "",
		"/v1/sessions/s-0a1b2c-7/audit/1/proof?size=0x1":           "",
		"/v1/sessions/s-0a1b2c-7/audit/01/proof":                   "",
		"/v1/sessions/s-0a1b2c-7/audit/-1/proof":                   "",
		"/v1/sessions/s-0a1b2c-7/audit/18446744073709551615/proof": "",
	} {
		before := len(r.plane.asked())
		resp, body := r.do(t, "GET", path, "DEV", nil)
		asked := r.plane.asked()[before:]
		if want == "" {
			if resp.StatusCode != http.StatusBadRequest && resp.StatusCode != http.StatusNotFound || len(asked) != 0 {
				t.Errorf("%s: %d %s, the plane was asked %q", path, resp.StatusCode, body, asked)
			}
		} else if resp.StatusCode != http.StatusOK || !slices.ContainsFunc(asked, func(a string) bool { return bytes.Contains([]byte(a), []byte(want)) }) {
			t.Errorf("%s: %d %s, the plane was asked %q", path, resp.StatusCode, body, asked)
		}
	}
}
