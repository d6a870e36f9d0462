package main

import (
	"crypto/tls"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/enclave-run/enclave/internal/auth"
)

func TestBeyondThisHostNeedsTLS(t *testing.T) {
	good := serveDefaults(func(string) string { return "" })
	for name, tc := range map[string]struct {
		change func(*serveOptions)
		ok     bool
	}{
		"loopback":               {func(*serveOptions) {}, true},
		"all addresses":          {func(o *serveOptions) { o.Listen = "0.0.0.0:8090" }, false},
		"all addresses with TLS": {func(o *serveOptions) { o.Listen, o.Access.TLS = "0.0.0.0:8090", selfSigned }, true},
		"a certificate":          {func(o *serveOptions) { o.Listen, o.Access.TLSCert, o.Access.TLSKey = "[::]:443", "c", "k" }, true},
		"the dangerous way":      {func(o *serveOptions) { o.Listen, o.Access.InsecurePlain = "192.0.2.1:80", true }, true},
		"another word":           {func(o *serveOptions) { o.Access.TLS = "on" }, false},
		"a certificate alone":    {func(o *serveOptions) { o.Access.TLSCert = "c" }, false},
		"two certificates":       {func(o *serveOptions) { o.Access.TLS, o.Access.TLSCert, o.Access.TLSKey = selfSigned, "c", "k" }, false},
		"TLS and none":           {func(o *serveOptions) { o.Access.TLS, o.Access.InsecurePlain = selfSigned, true }, false},
		"an issuer":              {func(o *serveOptions) { o.Access.OIDC = []string{"issuer=https://id.example,audience=e,org=acme,org=b"} }, true},
		"an issuer for nobody":   {func(o *serveOptions) { o.Access.OIDC = []string{"issuer=https://id.example,audience=e"} }, false},
		"an issuer for all":      {func(o *serveOptions) { o.Access.OIDC = []string{"issuer=https://id.example,org=acme"} }, false},
		"an issuer in the clear": {func(o *serveOptions) { o.Access.OIDC = []string{"issuer=http://id.example,audience=e,org=acme"} }, false},
		"an odd word":            {func(o *serveOptions) { o.Access.OIDC = []string{"issuer=https://id.example,audience=e,org=acme,x=y"} }, false},
		"an issuer's range":      {func(o *serveOptions) { o.Access.OIDCAllow = []string{"10.0.0.0/8"} }, true},
		"a public range":         {func(o *serveOptions) { o.Access.OIDCAllow = []string{"0.0.0.0/0"} }, false},
	} {
		o := good
		tc.change(&o)
		if err := o.validate(); (err == nil) != tc.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestServeOverTLSIsPinnedByItsFingerprint(t *testing.T) {
	t.Parallel()
	env, s := simulated(t)
	v := startServe(t, env, "--tls", "self-signed")
	print := regexp.MustCompile(`ENCLAVE_TLS_FINGERPRINT=([0-9a-f]{64})`).FindStringSubmatch(v.stdout)
	if !strings.HasPrefix(v.url, "https://") || print == nil {
		t.Fatalf("%s, %q", v.url, v.stdout)
	}
	remote := append(env, "ENCLAVE_BASE_URL="+v.url, "ENCLAVE_API_KEY="+v.key)
	run := func(more ...string) string {
		out, err := enclaveCommand(t, append(remote, more...), "run", "--quiet", "-c", "enclave.result(2)").CombinedOutput()
		if err == nil {
			return strings.TrimSpace(string(out))
		}
		return "refused: " + string(out)
	}
	colons := strings.ToUpper(regexp.MustCompile(`..`).ReplaceAllString(print[1], "$0:"))
	for name, tc := range map[string]struct{ set, want string }{
		"the fingerprint": {"ENCLAVE_TLS_FINGERPRINT=" + print[1], "2"},
		"with colons":     {"ENCLAVE_TLS_FINGERPRINT=" + strings.TrimSuffix(colons, ":"), "2"},
		"its authority":   {"ENCLAVE_CA_FILE=" + s.File("db", "tls.pem"), "2"},
		"another's":       {"ENCLAVE_TLS_FINGERPRINT=" + strings.Repeat("0", 64), "refused: .*not the one of TLSFingerprint"},
		"half of one":     {"ENCLAVE_TLS_FINGERPRINT=" + print[1][:32], "refused: .*64 hex digits"},
		"nothing":         {"X=", "refused: .*certificate"},
		"in the clear":    {"ENCLAVE_BASE_URL=http" + strings.TrimPrefix(v.url, "https"), "refused: .*if the server speaks TLS, ENCLAVE_BASE_URL must begin with https://\n$"},
	} {
		if got := run(tc.set); !regexp.MustCompile(`(?s)^` + tc.want).MatchString(got) {
			t.Errorf("%s: %s", name, got)
		}
	}
	// TLS 1.1 is not spoken.
	c, err := tls.Dial("tcp", strings.TrimPrefix(v.url, "https://"), &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11})
	if err == nil {
		c.Close()
		t.Error("TLS 1.1 is spoken")
	}
	v.stop(t)
	info, err := os.Stat(s.File("db", "tls.pem"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	// The next start has the same one.
	again, err := (&accessOptions{TLS: selfSigned}).certificate(s, "127.0.0.1:1", time.Now, slog.New(slog.DiscardHandler))
	if err != nil || again.Fingerprint() != print[1] {
		t.Errorf("the next certificate: %v", err)
	}
}

func TestWhoIsOnThisHostIsToldAnAddressToGoTo(t *testing.T) {
	for listens, goes := range map[string]string{
		"https://[::]:8090":      "https://127.0.0.1:8090",
		"https://0.0.0.0:443":    "https://127.0.0.1:443",
		"http://127.0.0.1:8090":  "http://127.0.0.1:8090",
		"https://192.0.2.1:8090": "https://192.0.2.1:8090",
		"http://[::1]:8090":      "http://[::1]:8090",
	} {
		if got := (&place{url: listens}).here(); got != goes {
			t.Errorf("listening on %s: %s, want %s", listens, got, goes)
		}
	}
}

func TestKeysAreManagedBesideAServer(t *testing.T) {
	t.Parallel()
	env, s := simulated(t)
	v := startServe(t, env)
	key := func(env []string, args ...string) string {
		t.Helper()
		out, err := enclaveCommand(t, env, append([]string{"key"}, args...)...).Output()
		if err != nil {
			t.Fatalf("key %q: %v", args, err)
		}
		return strings.TrimSpace(string(out))
	}
	plain := key(env, "create", "--org", "acme", "--user", "ada", "--role", "admin")
	id, secret, err := auth.Parse(plain)
	if err != nil {
		t.Fatal(err)
	}
	remote := append(env, "ENCLAVE_BASE_URL="+v.url, "ENCLAVE_API_KEY="+plain)
	second := key(remote, "create", "--user", "bob", "--role", "viewer")
	if list := key(remote, "list"); strings.Count(list, "\n") != 2 || !strings.Contains(list, "bob") || strings.Contains(list, "root") || strings.Contains(list, secret) {
		t.Errorf("an admin of acme lists %s", list)
	}
	if out, err := enclaveCommand(t, remote, "key", "create", "--role", "owner").CombinedOutput(); err == nil || !strings.Contains(string(out), "role is above") {
		t.Errorf("an admin makes an owner: %s", out)
	}
	key(env, "revoke", id)
	if out, err := enclaveCommand(t, remote, "session", "list").CombinedOutput(); err == nil || !strings.Contains(string(out), "unauthorized") {
		t.Errorf("after it was revoked: %s", out)
	}
	// A token of the host works until it ends; one of another secret does not.
	token, err := enclaveCommand(t, env, "token", "create", "--org", "acme", "--user", "ci", "--role", "viewer", "--ttl", "5m").Output()
	if err != nil {
		t.Fatal(err)
	}
	withToken := append(env, "ENCLAVE_BASE_URL="+v.url, "ENCLAVE_TOKEN="+strings.TrimSpace(string(token)))
	if out, err := enclaveCommand(t, withToken, "session", "list").CombinedOutput(); err != nil {
		t.Errorf("with a token: %v, %s", err, out)
	}
	if out, err := enclaveCommand(t, withToken, "run", "-c", "1").CombinedOutput(); err == nil || !strings.Contains(string(out), "forbidden") {
		t.Errorf("a viewer runs: %s", out)
	}
	log := v.stop(t)
	for name, text := range map[string]string{"the root key": v.key, "a key": plain, "another key": second, "the token": strings.TrimSpace(string(token))} {
		if tail := text[len(text)-20:]; strings.Contains(log, tail) {
			t.Errorf("the log has %s", name)
		}
	}
	if !strings.Contains(log, "key created") || !strings.Contains(log, "key revoked") || !strings.Contains(log, id) {
		t.Errorf("the log does not say what became of the keys: %s", log)
	}
	if info, err := os.Stat(s.File("db", "token.key")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	// With no server, one is started for the command.
	if list := key(env, "list"); !strings.Contains(list, "root") {
		t.Errorf("without a server: %s", list)
	}
	waitGone(t, s)
}

func TestRootKeyGoesToItsFileAndIsShownOnce(t *testing.T) {
	t.Parallel()
	env, _ := simulated(t)
	file := filepath.Join(t.TempDir(), "root.key")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := enclaveCommand(t, env, "serve", "--listen", "127.0.0.1:0", "--root-key-file", file).CombinedOutput()
	if ended(t, err) != 1 || !strings.Contains(string(out), "is there already") || strings.Contains(string(out), "ek_") {
		t.Errorf("onto another file: %v, %s", err, out)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	v := startServe(t, env, "--root-key-file", file)
	raw, err := os.ReadFile(file)
	if err != nil || v.key != "" || strings.Contains(v.stdout, "ek_") {
		t.Fatalf("%v, %q", err, v.stdout)
	}
	remote := append(env, "ENCLAVE_BASE_URL="+v.url, "ENCLAVE_API_KEY="+strings.TrimSpace(string(raw)))
	if out, err := enclaveCommand(t, remote, "session", "list").CombinedOutput(); err != nil {
		t.Errorf("with the key of the file: %v, %s", err, out)
	}
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	v.stop(t)
}
