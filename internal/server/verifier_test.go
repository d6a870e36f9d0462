package server

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/enclave-run/enclave/internal/auth"
	"github.com/golang-jwt/jwt/v5"
)

// An issuer that is somewhere private is not asked, unless the operator says so.
func TestIssuerIsReachedWhereTheOperatorAllows(t *testing.T) {
	asked := make(chan struct{}, 10)
	idp := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked <- struct{}{}
		w.WriteHeader(http.StatusTeapot)
	}))
	defer idp.Close()
	token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{"iss": idp.URL}).SignedString([]byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	// HS256 is refused before any key is wanted; RS256 is not.
	token = "eyJhbGciOiJSUzI1NiJ9." + strings.Split(token, ".")[1] + ".AAAA"
	issuers := []auth.Issuer{{URL: idp.URL, Audience: "e", Orgs: []string{"acme"}}}
	for _, allow := range [][]netip.Prefix{nil, {netip.MustParsePrefix("127.0.0.0/8")}} {
		v, err := verifier(state(t), issuers, allow, func(netip.Addr) bool { return false }, time.Now)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := v.Verify(t.Context(), token); !errors.Is(err, auth.ErrIssuer) {
			t.Errorf("allowed %v: %v", allow, err)
		}
		if n := len(asked); (n > 0) != (allow != nil) {
			t.Errorf("allowed %v: asked %d times", allow, n)
		}
	}
}
