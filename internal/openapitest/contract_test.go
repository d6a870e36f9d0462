package openapitest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
)

const golden = "../../api/testdata/"

func load(t *testing.T) *Document {
	t.Helper()
	d, err := Load()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(golden + name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// schemas says what each golden document is one of.
var schemas = map[string]string{
	"session_request": "SessionRequest", "session": "Session", "sessions": "SessionPage", "events": "EventPage",
	"consistency": "Consistency", "inclusion": "Inclusion",
	"result": "Result", "problem": "Problem", "health": "Health", "queue": "Queue",
	"webhook": "WebhookEvent", "webhook_key": "WebhookKey",
	"key_request": "KeyRequest", "key_created": "CreatedKey", "keys": "KeyPage", "principal": "Principal", "usage": "UsagePage",
}

func TestGoldenDocumentsAreAsTheDocumentSays(t *testing.T) {
	d := load(t)
	files, err := filepath.Glob(golden + "*.json")
	if err != nil || len(files) < 10 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, f := range files {
		name := strings.TrimSuffix(filepath.Base(f), ".json")
		if name == "stream" || name == "request_canonical" {
			continue // what a client makes of stream.sse, and what is hashed: no answers
		}
		schema, longest := "", 0
		for prefix, s := range schemas {
			if (name == prefix || strings.HasPrefix(name, prefix+"_")) && len(prefix) > longest {
				schema, longest = s, len(prefix)
			}
		}
		if schema == "" {
			t.Errorf("%s.json is not said to be one of anything", name)
			continue
		}
		v, err := parse(read(t, name+".json"))
		if err != nil {
			t.Fatal(err)
		}
		if err := d.CheckSchema(schema, v); err != nil {
			t.Errorf("%s.json is no %s: %v", name, schema, err)
		}
	}
}

func TestGoldenStreamIsAsTheDocumentSays(t *testing.T) {
	x := Exchange{
		Request: httptest.NewRequest("GET", "/v1/sessions/s-0a1b2c-7/stream", nil), Status: 200,
		Header: http.Header{"Content-Type": {"text/event-stream; charset=utf-8"}}, Body: read(t, "stream.sse"),
	}
	if err := load(t).Check(x); err != nil {
		t.Error(err)
	}
}

// Every object is closed: a field that nobody described is noticed.
func TestEverySchemaIsClosed(t *testing.T) {
	open := map[string]bool{}
	var walk func(where string, s *openapi3.SchemaRef)
	walk = func(where string, s *openapi3.SchemaRef) {
		if s == nil || s.Ref != "" {
			return
		}
		v := s.Value
		more := v.AdditionalProperties
		closed := more.Schema != nil || more.Has != nil && !*more.Has
		if v.Type.Includes("object") && !v.Type.Includes("string") && !closed {
			open[where] = true
		}
		for name, p := range v.Properties {
			walk(where+"."+name, p)
		}
		walk(where+"[]", v.Items)
		walk(where+".*", v.AdditionalProperties.Schema)
		for i, p := range append(append(v.AllOf, v.OneOf...), v.AnyOf...) {
			walk(fmt.Sprintf("%s#%d", where, i), p)
		}
	}
	for name, s := range load(t).Components.Schemas {
		walk(name, s)
	}
	for where := range open {
		t.Errorf("%s takes any field", where)
	}
}

// Each exchange is wrong in one way.
func TestBreachesAreNoticed(t *testing.T) {
	d := load(t)
	session := string(read(t, "session_succeeded.json"))
	edit := func(old, new string) []byte {
		if !strings.Contains(session, old) {
			t.Fatalf("no %s in %s", old, session)
		}
		return []byte(strings.Replace(session, old, new, 1))
	}
	problem := func(status int, code string) []byte {
		b, err := json.Marshal(map[string]any{"type": "about:blank", "title": "x", "status": status, "detail": "x", "code": code})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	const get, created, stream = "/v1/sessions/s-0a1b2c-7", "/v1/sessions", "/v1/sessions/s-0a1b2c-7/stream"
	body := []byte(`{"code":"x"}`)
	for name, tc := range map[string]struct {
		method, path string
		sent         []byte
		status       int
		kind         string // content type
		header       string // "Name: value"
		answer       []byte
		good         bool
	}{
		"a session":                     {"GET", get, nil, 200, "application/json", "", []byte(session), true},
		"a session after HEAD":          {"HEAD", get, nil, 200, "application/json", "", nil, true},
		"a field too many":              {"GET", get, nil, 200, "application/json", "", edit(`"orgId"`, `"org": "x", "orgId"`), false},
		"a field too few":               {"GET", get, nil, 200, "application/json", "", edit(`"orgId": "acme",`, ``), false},
		"a secret in a nested field":    {"GET", get, nil, 200, "application/json", "", edit(`"exitCode"`, `"env": "x", "exitCode"`), false},
		"an unknown phase":              {"GET", get, nil, 200, "application/json", "", edit(`"phase": "succeeded"`, `"phase": "done"`), false},
		"a number as text":              {"GET", get, nil, 200, "application/json", "", edit(`256`, `"256"`), false},
		"a time that is none":           {"GET", get, nil, 200, "application/json", "", edit(`2026-09-01T12:00:00.123456Z`, `yesterday`), false},
		"no JSON":                       {"GET", get, nil, 200, "application/json", "", []byte(session[:50]), false},
		"two values":                    {"GET", get, nil, 200, "application/json", "", []byte(session + session), false},
		"another content type":          {"GET", get, nil, 200, "text/html", "", []byte(session), false},
		"a status that is not listed":   {"GET", get, nil, 202, "application/json", "", []byte(session), false},
		"not found":                     {"GET", get, nil, 404, "application/problem+json", "", problem(404, "not_found"), true},
		"a problem of another code":     {"GET", get, nil, 404, "application/problem+json", "", problem(404, "gone"), false},
		"a problem of another status":   {"GET", get, nil, 404, "application/problem+json", "", problem(403, "not_found"), false},
		"a problem as plain JSON":       {"GET", get, nil, 404, "application/json", "", problem(404, "not_found"), false},
		"401 without a challenge":       {"GET", get, nil, 401, "application/problem+json", "", problem(401, "unauthorized"), false},
		"401":                           {"GET", get, nil, 401, "application/problem+json", "WWW-Authenticate: Bearer", problem(401, "unauthorized"), true},
		"503 without Retry-After":       {"POST", created, body, 503, "application/problem+json", "", problem(503, "unavailable"), false},
		"503":                           {"POST", created, body, 503, "application/problem+json", "Retry-After: 5", problem(503, "unavailable"), true},
		"201 without Location":          {"POST", created, body, 201, "application/json", "", []byte(session), false},
		"201":                           {"POST", created, body, 201, "application/json", "Location: /v1/sessions/s-0a1b2c-7", []byte(session), true},
		"a bad request that is taken":   {"POST", created, []byte(`{"code":"x","egres":1}`), 201, "application/json", "Location: /v1/sessions/s-0a1b2c-7", []byte(session), false},
		"a bad request that is refused": {"POST", created, []byte(`{"code":"x","egres":1}`), 400, "application/problem+json", "", problem(400, "invalid_request"), true},
		"a parameter that is not there": {"GET", created + "?org=x", nil, 200, "application/json", "", []byte(`{"items":[]}`), false},
		"a limit above the most":        {"GET", created + "?limit=101", nil, 200, "application/json", "", []byte(`{"items":[]}`), false},
		"a page":                        {"GET", created + "?limit=100", nil, 200, "application/json", "", []byte(`{"items":[]}`), true},
		"a path that is not there":      {"GET", "/v2", nil, 404, "application/problem+json", "", problem(404, "no_route"), true},
		"a path that nobody described":  {"GET", "/v2", nil, 200, "application/json", "", []byte(`{}`), false},
		"an unclean path":               {"GET", "/v1//sessions", nil, 200, "application/json", "", []byte(`{"items":[]}`), false},
		"another method":                {"PUT", created, nil, 405, "application/problem+json", "Allow: GET, POST", problem(405, "method_not_allowed"), true},
		"another method that is taken":  {"PUT", created, nil, 200, "application/json", "", []byte(`{"items":[]}`), false},
		"405 without Allow":             {"PUT", created, nil, 405, "application/problem+json", "", problem(405, "method_not_allowed"), false},
		"an event":                      {"GET", stream, nil, 200, "text/event-stream; charset=utf-8", "", []byte("id: p0.o0.e0.a0.r0\nevent: end\ndata: {}\n\n"), true},
		"an event of another kind":      {"GET", stream, nil, 200, "text/event-stream; charset=utf-8", "", []byte("id: p0.o0.e0.a0.r0\nevent: over\ndata: {}\n\n"), false},
		"an event with a field more":    {"GET", stream, nil, 200, "text/event-stream; charset=utf-8", "", []byte("id: p0.o0.e0.a0.r0\nevent: end\ndata: {\"x\":1}\n\n"), false},
		"an event without an id":        {"GET", stream, nil, 200, "text/event-stream; charset=utf-8", "", []byte("event: end\ndata: {}\n\n"), false},
		"an event after the end":        {"GET", stream, nil, 200, "text/event-stream; charset=utf-8", "", bytes.Repeat([]byte("id: p0.o0.e0.a0.r0\nevent: end\ndata: {}\n\n"), 2), false},
		"half an event":                 {"GET", stream, nil, 200, "text/event-stream; charset=utf-8", "", []byte("id: p0.o0.e0.a0.r0\nevent: end\n"), false},
		"a stream without its charset":  {"GET", stream, nil, 200, "text/event-stream", "", []byte(": x\n\n"), false},
	} {
		r := httptest.NewRequest(tc.method, tc.path, bytes.NewReader(tc.sent))
		h := http.Header{"Content-Type": {tc.kind}}
		if name, value, ok := strings.Cut(tc.header, ": "); ok {
			h.Set(name, value)
		}
		if tc.sent != nil {
			r.Header.Set("Content-Type", "application/json")
		}
		err := d.Check(Exchange{Request: r, Sent: tc.sent, Status: tc.status, Header: h, Body: tc.answer})
		if (err == nil) != tc.good {
			t.Errorf("%s: %v", name, err)
		}
	}
}
