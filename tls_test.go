package enclave_test

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/enclave-run/enclave"
)

func TestFingerprintIsNeverIgnored(t *testing.T) {
	answer := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"userId":"ada","orgId":"acme","role":"viewer","scopes":[],"key":"k"}`))
	})
	secure, plain := httptest.NewTLSServer(answer), httptest.NewServer(answer)
	defer secure.Close()
	defer plain.Close()
	sum := sha256.Sum256(secure.Certificate().Raw)
	print := hex.EncodeToString(sum[:])
	for name, tc := range map[string]struct {
		client *enclave.Client
		ok     bool
	}{
		"the server's":    {&enclave.Client{BaseURL: secure.URL, TLSFingerprint: print}, true},
		"in upper case":   {&enclave.Client{BaseURL: secure.URL, TLSFingerprint: strings.ToUpper(print)}, true},
		"another's":       {&enclave.Client{BaseURL: secure.URL, TLSFingerprint: strings.Repeat("0", 64)}, false},
		"a short one":     {&enclave.Client{BaseURL: secure.URL, TLSFingerprint: print[:62]}, false},
		"none":            {&enclave.Client{BaseURL: secure.URL}, false},
		"over plain http": {&enclave.Client{BaseURL: plain.URL, TLSFingerprint: print}, false},
		"by default":      {&enclave.Client{TLSFingerprint: print}, false},
		"another client":  {&enclave.Client{BaseURL: secure.URL, TLSFingerprint: print, HTTPClient: secure.Client()}, false},
	} {
		ctx := t.Context()
		if _, err := tc.client.Whoami(ctx); (err == nil) != tc.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}
