package demo

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"regexp"

	"github.com/enclave-run/enclave/internal/secret"
)

// brokered are the canaries that a control plane holds as secrets: one that
// looks like a token, and one that looks like nothing.
type brokered struct {
	jwt, opaque string
	scanner     *secret.Scanner
}

// newBrokered makes canaries and wants the scanner to find them where they are:
// a scan that finds nothing must mean that nothing is there.
func newBrokered() (brokered, error) {
	part := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	b := brokered{
		jwt:    part(`{"alg":"HS256","typ":"JWT"}`) + "." + part(`{"jti":"`+random()+`"}`) + "." + part(random()),
		opaque: "canary-" + random() + random(),
	}
	b.scanner = secret.NewScanner(secret.New(b.jwt), secret.New(b.opaque))
	for _, s := range []string{b.jwt, b.opaque} {
		for _, planted := range []string{s, base64.StdEncoding.EncodeToString([]byte("x=" + s))} {
			if _, found := b.scanner.Find([]byte(`{"a":"` + planted + `"}`)); !found {
				return brokered{}, errors.New("the scanner does not find a canary that is there")
			}
		}
	}
	return b, nil
}

// plant gives the canaries to the control plane as secrets.
func (b brokered) plant(v *secret.Vault) error {
	return errors.Join(
		v.Put("demo-token", secret.New(b.jwt)),
		v.Put("demo-opaque", secret.New(b.opaque)),
	)
}

// jwtForm is a JSON web token, or what passes for one at a glance.
var jwtForm = regexp.MustCompile(`eyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]{5,}`)

// leak returns where among surfaces a secret is, and how it is written, or "".
// It never says what it found.
func (b brokered) leak(surfaces []surface) string {
	for _, s := range surfaces {
		if how, found := b.scanner.Find(s.raw); found {
			return fmt.Sprintf("a brokered secret (%s) is in %s", how, s.name)
		}
		if jwtForm.Match(s.raw) {
			return "a token that begins with eyJ is in " + s.name
		}
	}
	return ""
}

// publicSurfaces reads what a control plane says to anyone who asks, apart from
// its sessions.
func publicSurfaces(ctx context.Context, p *Plane) ([]surface, error) {
	var all []surface
	for _, r := range []struct {
		method, path, body string
		authorized         bool
	}{
		{"GET", "/v1/sessions", "", true},
		{"GET", "/v1/audit/checkpoint", "", true},
		{"GET", "/healthz", "", false},
		{"GET", "/readyz", "", false},
		{"GET", "/metrics", "", true},
		{"GET", "/v1/sessions/s-000000-0", "", true},        // not found
		{"GET", "/v1/sessions", "", false},                  // no credential
		{"POST", "/v1/sessions", `{"codes": "1"}`, true},    // an unknown field
		{"POST", "/v1/sessions", `{"code": "1"`, true},      // not JSON
		{"GET", "/v1/no-such-thing", "", true},              // no route
		{"PUT", "/v1/sessions", `{"code": "1"}`, true},      // no such method
		{"GET", "/v1/sessions?cursor=%ff", "", true},        // a bad parameter
		{"GET", "/v1/sessions/../../secret", "", true},      // a path trick
		{"GET", "/v1/sessions/s-000000-0/result", "", true}, // not found
	} {
		raw, err := p.fetch(ctx, r.method, r.path, r.body, r.authorized)
		if err != nil {
			return nil, err
		}
		all = append(all, surface{r.method + " " + r.path, raw})
	}
	if p.Inside != nil {
		all = append(all, surface{"the server's log", p.Inside.Log()})
	}
	return all, nil
}
