package httpapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/auth"
)

func TestServerProducesTheGoldenKeys(t *testing.T) {
	k := auth.Key{ID: "0123456789abcdef", Org: "acme", User: "ci", Role: auth.Developer, Scopes: auth.Scopes(auth.Developer), Created: created}
	v := auth.Key{ID: "fedcba9876543210", Org: "acme", User: "ada <ada@example.com>", Role: auth.Viewer, Scopes: auth.Scopes(auth.Viewer),
		Created: created, Revoked: time.Date(2026, 9, 1, 15, 0, 0, 0, time.FixedZone("", 7200))} // written in UTC
	for name, doc := range map[string]any{
		"key_created.json": enclave.CreatedKey{Key: publicKey(k), Plaintext: "ek_0123456789abcdef_" + strings.Repeat("0", 62) + "aa"},
		"keys.json":        enclave.Page[enclave.Key]{Items: []enclave.Key{publicKey(k), publicKey(v)}, NextCursor: v.ID},
	} {
		got, err := encode(doc)
		if err != nil {
			t.Fatal(err)
		}
		if want := compact(t, name); strings.TrimSuffix(string(got), "\n") != want {
			t.Errorf("%s:\n%s\nwant\n%s", name, got, want)
		}
	}
}

func TestKeysOverTheAPI(t *testing.T) {
	w := realWorld(t)
	c := w.client("OWNER")
	k, err := c.CreateKey(t.Context(), enclave.KeyRequest{User: "ci", Role: auth.Developer})
	if err != nil || k.OrgID != "acme" || k.User != "ci" || k.RevokedAt != nil {
		t.Fatalf("%+v, %v", k, err)
	}
	mine := &enclave.Client{BaseURL: "http://" + w.addr, APIKey: k.Plaintext}
	p, err := mine.Whoami(t.Context())
	want := enclave.Principal{UserID: "ci", OrgID: "acme", Role: auth.Developer, Scopes: auth.Scopes(auth.Developer), Key: k.ID}
	if d := cmp.Diff(want, p); err != nil || d != "" {
		t.Errorf("%v: %s", err, d)
	}
	var ids []string
	for o := (enclave.KeyListOptions{Limit: 2}); ; {
		page, err := c.Keys(t.Context(), o)
		if err != nil || len(page.Items) > 2 {
			t.Fatalf("%+v, %v", page, err)
		}
		for _, i := range page.Items {
			ids = append(ids, i.ID)
		}
		if o.Cursor = page.NextCursor; o.Cursor == "" {
			break
		}
	}
	if len(ids) != 7 || ids[6] != k.ID { // the five of the rig's acme, the world's, this
		t.Errorf("the pages have %q", ids)
	}
	if _, err := c.Keys(t.Context(), enclave.KeyListOptions{Cursor: "0123456789abcdef"}); !errors.Is(err, enclave.ErrInvalid) {
		t.Errorf("a cursor of another list: %v", err)
	}
	if _, err := c.Keys(t.Context(), enclave.KeyListOptions{OrgID: "globex"}); !errors.Is(err, enclave.ErrForbidden) {
		t.Errorf("the keys of another organisation: %v", err)
	}
	for range 2 {
		if err := c.RevokeKey(t.Context(), k.ID); err != nil {
			t.Error(err)
		}
	}
	if _, err := mine.Whoami(t.Context()); !errors.Is(err, enclave.ErrUnauthorized) {
		t.Errorf("a revoked key: %v", err)
	}
	_, secret, err := auth.Parse(k.Plaintext)
	if err != nil || strings.Contains(w.closed(t), secret) {
		t.Errorf("the log has the secret of a key (%v)", err)
	}
}

// The rig asks only every 5 seconds whether credentials are good; the test
// ends sooner because a revocation says so.
func TestRevokedKeyLosesItsOpenStreamAtOnce(t *testing.T) {
	r := newRig(t, func(r *rig) { r.recheck = time.Hour })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", "http://"+r.addr+"/v1/sessions/s-0a1b2c-8/stream", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+r.key["DEV"])
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%v, %v", resp, err)
	}
	defer resp.Body.Close()
	b := make([]byte, 1)
	if _, err := resp.Body.Read(b); err != nil { // it is open
		t.Fatal(err)
	}
	id, _, err := auth.Parse(r.key["DEV"])
	if err != nil {
		t.Fatal(err)
	}
	r.keys.change(func() {
		k := r.keys.keys[id]
		k.Revoked = created
		r.keys.keys[id] = k
	})
	if err := r.client("OWNER").RevokeKey(t.Context(), theirKey); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = resp.Body.Read(b)
	}
	if ctx.Err() != nil {
		t.Error("the stream is still open")
	}
}

// unreachable is a verifier whose issuer is away.
type unreachable struct{}

func (unreachable) Verify(context.Context, string) (auth.Caller, error) {
	return auth.Caller{Org: "acme", Scopes: auth.Scopes(auth.Owner)}, fmt.Errorf("%w: canary", auth.ErrIssuer)
}

func TestUnreachableIssuerIsNoRefusalAndLetsNobodyIn(t *testing.T) {
	r := newRig(t)
	r.tokens = unreachable{}
	resp, body := r.do(t, "GET", "/v1/sessions", "TOKEN", nil)
	if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" || strings.Contains(body, "canary") {
		t.Errorf("%d %v %s", resp.StatusCode, resp.Header, body)
	}
	if resp, _ := r.do(t, "GET", "/v1/sessions", "DEV", nil); resp.StatusCode != http.StatusOK {
		t.Errorf("with a key: %d", resp.StatusCode)
	}
	if !strings.Contains(r.closed(t), "canary") {
		t.Error("the log does not say why")
	}
}

func TestOneCredentialAndNoMore(t *testing.T) {
	r := newRig(t)
	for name, header := range map[string][]string{
		"a bad one after a good": {"Authorization", "Bearer x"},
		"the same twice":         {"Authorization", "Bearer " + r.key["DEV"]},
		"a token beside a key":   {"Authorization", "Bearer " + r.key["TOKEN"]},
	} {
		if resp, _ := r.do(t, "GET", "/v1/whoami", "DEV", nil, header...); resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s: %d", name, resp.StatusCode)
		}
	}
	for _, header := range []string{"Basic " + r.key["TOKEN"], r.key["TOKEN"], "Bearer", "Bearer ", "Bearer  " + r.key["TOKEN"], "Bearer " + r.key["TOKEN"] + " x"} {
		if resp, _ := r.do(t, "GET", "/v1/whoami", "", nil, "Authorization", header); resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("%.12q…: %d", header, resp.StatusCode)
		}
	}
}

func TestEveryAnswerNamesItsRequest(t *testing.T) {
	r := newRig(t)
	var ours []string
	for _, tc := range []struct {
		given []string
		taken bool
	}{
		{nil, false}, {[]string{"abc-1.2_Z"}, true}, {[]string{strings.Repeat("x", 64)}, true},
		{[]string{strings.Repeat("x", 65)}, false}, {[]string{"a b"}, false}, {[]string{"a\tlevel=INFO"}, false},
		{[]string{"ü"}, false}, {[]string{""}, false}, {[]string{"a", "b"}, false},
	} {
		var header []string
		for _, g := range tc.given {
			header = append(header, "X-Request-Id", g)
		}
		for _, path := range []string{"/healthz", "/nowhere", "/v1/sessions"} {
			resp, body := r.do(t, "GET", path, "", nil, header...)
			id := resp.Header.Get("X-Request-Id")
			if tc.taken != (len(tc.given) == 1 && id == tc.given[0]) || !requestIDForm.MatchString(id) {
				t.Errorf("%s with %q: %q", path, tc.given, id)
			}
			if resp.StatusCode >= 400 && !strings.Contains(body, `"requestId":"`+id+`"`) {
				t.Errorf("%s: %s", path, body)
			}
			if !tc.taken {
				ours = append(ours, id)
			}
		}
	}
	seen := map[string]bool{}
	for _, id := range ours {
		if seen[id] {
			t.Errorf("%s names two requests", id)
		}
		seen[id] = true
	}
	_, err := r.client("").List(t.Context(), enclave.ListOptions{})
	var p *enclave.Error
	if !errors.As(err, &p) || p.RequestID == "" || !strings.Contains(r.closed(t), "request_id="+p.RequestID) {
		t.Errorf("%+v", p)
	}
}

// What a client names its request reaches the log and the answer only if every
// byte of it is one that no log, shell or terminal gives a meaning to.
func FuzzRequestID(f *testing.F) {
	for _, s := range []string{"", "abc-1.2_Z", strings.Repeat("x", 64), strings.Repeat("x", 65), "a b", "a\n", "\u00fc", "a\x00"} {
		f.Add(s, s)
	}
	const plain = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"
	f.Fuzz(func(t *testing.T, given, second string) {
		id := requestID(&http.Request{Header: http.Header{"X-Request-Id": {given}}})
		good := len(given) >= 1 && len(given) <= 64 && strings.Trim(given, plain) == "" && !strings.ContainsFunc(given, func(r rune) bool { return !strings.ContainsRune(plain, r) })
		if good != (id == given) {
			t.Errorf("%q becomes %q", given, id)
		}
		if !good && (len(id) != 16 || strings.Trim(id, "0123456789abcdef") != "") {
			t.Errorf("%q is replaced by %q", given, id)
		}
		if two := requestID(&http.Request{Header: http.Header{"X-Request-Id": {given, second}}}); len(two) != 16 {
			t.Errorf("%q and %q become %q", given, second, two)
		}
	})
}
