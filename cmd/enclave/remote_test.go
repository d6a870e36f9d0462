package main

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
)

// Demos drive a control plane over TLS, pin its certificate, and say which it was.
func TestDemosPinTheCertificateOfARemoteControlPlane(t *testing.T) {
	t.Parallel()
	env, _ := simulated(t)
	v := startServe(t, env, "--tls", "self-signed")
	defer v.stop(t)
	conn, err := tls.Dial("tcp", strings.TrimPrefix(v.url, "https://"), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(conn.ConnectionState().PeerCertificates[0].Raw)
	conn.Close()
	print := hex.EncodeToString(sum[:])
	colons := strings.ToUpper(print[:2]) + ":" + print[2:]
	other := strings.Repeat("0", 64)
	for name, tc := range map[string]struct {
		args, env []string
		pinned    bool
	}{
		"one, pinned":          {[]string{"adversarial"}, []string{"ENCLAVE_BASE_URL=" + v.url, "ENCLAVE_API_KEY=" + v.key, "ENCLAVE_TLS_FINGERPRINT=" + colons}, true},
		"one, of another":      {[]string{"adversarial"}, []string{"ENCLAVE_BASE_URL=" + v.url, "ENCLAVE_API_KEY=" + v.key, "ENCLAVE_TLS_FINGERPRINT=" + other}, false},
		"one that nobody pins": {[]string{"adversarial"}, []string{"ENCLAVE_BASE_URL=" + v.url, "ENCLAVE_API_KEY=" + v.key}, false},
		"two, pinned":          {[]string{"backend-parity"}, []string{"ENCLAVE_PARITY_BASE_URLS=a=" + v.url + ",b=" + v.url, "ENCLAVE_PARITY_API_KEYS=a=" + v.key + ",b=" + v.key, "ENCLAVE_PARITY_TLS_FINGERPRINTS=a=" + print + ",b=" + colons}, true},
		"two, one of another":  {[]string{"backend-parity"}, []string{"ENCLAVE_PARITY_BASE_URLS=a=" + v.url + ",b=" + v.url, "ENCLAVE_PARITY_API_KEYS=a=" + v.key + ",b=" + v.key, "ENCLAVE_PARITY_TLS_FINGERPRINTS=a=" + print + ",b=" + other}, false},
	} {
		t.Run(name, func(t *testing.T) {
			c := enclaveCommand(t, append(env, tc.env...), append([]string{"demo", "--json", "--evidence", filepath.Join(t.TempDir(), "e")}, tc.args...)...)
			var out, said bytes.Buffer
			c.Stdout, c.Stderr = &out, &said
			err := c.Run()
			if !tc.pinned {
				if err == nil || out.Len() > 0 || !strings.Contains(said.String(), "certificate") {
					t.Errorf("%v, %s, %s", err, out.String(), said.String())
				}
				return
			}
			if err != nil {
				t.Fatalf("%v: %s", err, said.String())
			}
			var r struct {
				Summary struct {
					Passed         bool
					TLSFingerprint string
				}
				Backends []struct{ TLSFingerprint string }
			}
			if err := json.Unmarshal(out.Bytes(), &r); err != nil || !r.Summary.Passed {
				t.Fatalf("%v: %s", err, out.String())
			}
			prints := []string{r.Summary.TLSFingerprint}
			if len(r.Backends) > 0 {
				prints = []string{r.Backends[0].TLSFingerprint, r.Backends[1].TLSFingerprint}
			}
			for _, p := range prints {
				if p != print {
					t.Errorf("the report names %q: %s", prints, out.String())
				}
			}
		})
	}
}
