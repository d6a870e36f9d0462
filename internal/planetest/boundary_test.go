package planetest_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/auth"
	"github.com/enclave-run/enclave/internal/openapitest"
)

// wordy are the parts of a request that the document also bounds in words, so
// that the server refuses more of them than the schema does.
var wordy = []string{"egress.allow[]", "webhookUrl"}

// edges yields values on both sides of every edge that s describes, each with
// where in the request it is.
func edges(s *openapi3.Schema, at string, yield func(at string, v any)) {
	text := func(n uint64) string { // of n bytes, and a path in its shortest form
		return strings.Repeat("aaaaaaa/", int(n/8+1))[:n]
	}
	if s.Type.Includes("string") {
		yield(at, "")
		yield(at, "a")
		yield(at, 1)
		yield(at, "a\x00")
		if n := s.MaxLength; n != nil {
			yield(at, text(*n))
			yield(at, text(*n+1))
		}
	}
	if s.Type.Includes("integer") {
		for _, n := range []any{-1, 0, 1, 2, 1.5, "1", true} {
			yield(at, n)
		}
	}
	for _, e := range s.Enum {
		yield(at, e)
		yield(at, fmt.Sprint(e)+"x")
	}
	if s.Type.Includes("array") {
		yield(at, "a")
		yield(at, map[string]any{})
		list := func(n uint64) []any {
			l := make([]any, n)
			for i := range l {
				l[i] = "example.com"
			}
			return l
		}
		for _, n := range []uint64{0, 1, *s.MaxItems, *s.MaxItems + 1} {
			yield(at, list(n))
		}
		edges(s.Items.Value, at+"[]", func(at string, v any) { yield(at, []any{"example.com", v}) })
	}
	if s.Type.Includes("object") {
		yield(at, []any{})
		if more := s.AdditionalProperties.Schema; more != nil {
			members := func(n uint64) map[string]any {
				m := map[string]any{}
				for i := range n {
					m[fmt.Sprint("k", i)] = "v"
				}
				return m
			}
			yield(at, members(*s.MaxProps))
			yield(at, members(*s.MaxProps+1))
			edges(more.Value, at+".*", func(at string, v any) { yield(at, map[string]any{"k": v}) })
			for _, n := range []uint64{0, 1, 255, 257, 1023, 1025} { // a text of 256 or 1024 ends in a slash
				yield(at+" name", map[string]any{text(n): "v"})
				yield(at+" name", map[string]any{"/work/" + text(n): "v"})
			}
			return
		}
		yield(at, map[string]any{"unknown": 1})
		for name, p := range s.Properties {
			edges(p.Value, strings.TrimPrefix(at+"."+name, "."), func(at string, v any) { yield(at, map[string]any{name: v}) })
		}
	}
}

// The document and the server draw every edge at the same place: for each that
// a request can be on either side of, what the one refuses the other does.
func TestDocumentAndServerAgreeOnEveryEdge(t *testing.T) {
	d, err := openapitest.Load()
	if err != nil {
		t.Fatal(err)
	}
	p := open(t, t.TempDir())
	key, org, sent, accepted := "", 0, 0, 0
	edges(d.Components.Schemas["SessionRequest"].Value, "", func(at string, v any) {
		q := map[string]any{"code": "pass"}
		part, ok := v.(map[string]any)
		if !ok {
			return // of the request itself, which is an object
		}
		if _, has := part["argv"]; has {
			delete(q, "code")
		}
		if eg, ok := part["egress"].(map[string]any); ok && strings.HasPrefix(at, "egress.allow") {
			eg["mode"] = "allowlist"
		}
		maps.Copy(q, part)
		body, err := json.Marshal(q)
		if err != nil {
			t.Fatal(err)
		}
		var plain any // as a parser has it
		if err := json.Unmarshal(body, &plain); err != nil {
			t.Fatal(err)
		}
		if sent++; sent%100 == 1 { // an organisation may only create so many in a minute
			org++
			if key, err = p.NewKey(fmt.Sprint("org", org), auth.Developer); err != nil {
				t.Fatal(err)
			}
		}
		allows := d.CheckSchema("SessionRequest", plain) == nil
		resp, text := ask(t, p, "POST", "/v1/sessions", key, string(body))
		var problem enclave.Error
		if err := json.Unmarshal([]byte(text), &problem); err != nil {
			t.Fatal(err)
		}
		takes := resp.StatusCode == 201 || problem.Code == "isolation_unavailable" // understood, and more than there is
		if takes {
			accepted++
		}
		if resp.StatusCode != 201 && resp.StatusCode != 400 {
			t.Errorf("%s: %s %s", at, resp.Status, text)
		}
		stricter := false
		for _, w := range wordy {
			stricter = stricter || at == w
		}
		if takes != allows && !(stricter && allows) {
			t.Errorf("%s: the document allows it: %v, the server takes it: %v: %.200s %.300s", at, allows, takes, body, text)
		}
	})
	if sent < 100 || accepted < 40 || sent-accepted < 40 {
		t.Errorf("%d requests, %d of which were accepted: the edges were not found", sent, accepted)
	}
	t.Logf("%d requests, %d accepted", sent, accepted)
}
