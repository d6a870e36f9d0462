// Package openapitest holds a server of the API to its OpenAPI document: a Handler
// lets each exchange through and reports what the document does not say of it.
// Only tests import it.
package openapitest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/enclave-run/enclave/api"
)

// A Document is the API's OpenAPI document, which is valid.
type Document struct {
	*openapi3.T
	paths *http.ServeMux // knows which path a request is for

	components json.RawMessage // what schemas refer to
	mu         sync.Mutex
	compiled   map[*openapi3.SchemaRef]*jsonschema.Schema
}

// Load returns the document of package api, or what is wrong with it.
var Load = sync.OnceValues(func() (*Document, error) {
	t, err := openapi3.NewLoader().LoadFromData(api.OpenAPI)
	if err != nil {
		return nil, fmt.Errorf("read openapi.yaml: %w", err)
	}
	if err := t.Validate(context.Background(), openapi3.EnableExamplesValidation()); err != nil {
		return nil, fmt.Errorf("openapi.yaml is not valid: %w", err)
	}
	d := &Document{T: t, paths: http.NewServeMux(), compiled: map[*openapi3.SchemaRef]*jsonschema.Schema{}}
	if d.components, err = json.Marshal(t.Components); err != nil {
		return nil, fmt.Errorf("encode the components of openapi.yaml: %w", err)
	}
	for name, s := range t.Components.Schemas {
		if _, err := d.compile(s); err != nil {
			return nil, fmt.Errorf("schema %s: %w", name, err)
		}
	}
	for p := range t.Paths.Map() {
		d.paths.Handle(p, http.NotFoundHandler())
	}
	return d, nil
})

// An Exchange is one request and its answer.
type Exchange struct {
	Request *http.Request // its body is not read
	Sent    []byte        // what of the request's body the server read
	Status  int
	Header  http.Header
	Body    []byte
	Cut     bool // the answer may have ended before its end
}

// Check returns what the document does not say of x, or nil. A request that was
// accepted must be one that the document allows.
func (d *Document) Check(x Exchange) error {
	op, route := d.operation(x.Request)
	if op == nil {
		return d.checkElsewhere(x)
	}
	params := map[string]string{}
	for i, seg := range strings.Split(route.Path, "/") {
		if name, ok := strings.CutPrefix(seg, "{"); ok {
			params[strings.TrimSuffix(name, "}")] = strings.Split(x.Request.URL.Path, "/")[i]
		}
	}
	req := x.Request.Clone(context.Background())
	req.Body = io.NopCloser(bytes.NewReader(x.Sent))
	in := &openapi3filter.RequestValidationInput{
		Request: req, PathParams: params, Route: route, QueryParams: req.URL.Query(),
		Options: &openapi3filter.Options{
			AuthenticationFunc: openapi3filter.NoopAuthenticationFunc, RejectWhenRequestBodyNotSpecified: true, SkipSettingDefaults: true,
		},
	}
	if x.Status < 300 {
		if err := openapi3filter.ValidateRequest(context.Background(), in); err != nil {
			return fmt.Errorf("a request was accepted that the document does not allow: %w", err)
		}
		for name := range req.URL.Query() {
			if !hasParameter(route, name) {
				return fmt.Errorf("the query parameter %q was accepted, which the document does not have", name)
			}
		}
	}
	err := openapi3filter.ValidateResponse(context.Background(), &openapi3filter.ResponseValidationInput{
		RequestValidationInput: in, Status: x.Status, Header: x.Header,
		Options: &openapi3filter.Options{IncludeResponseStatus: true, ExcludeResponseBody: true},
	})
	if err != nil {
		return fmt.Errorf("status %d: %w", x.Status, err)
	}
	return d.checkBody(op.Responses.Status(x.Status), x)
}

// operation returns what the document says of the path and method of r.
func (d *Document) operation(r *http.Request) (*openapi3.Operation, *routers.Route) {
	p := d.path(r)
	if p == "" {
		return nil, nil
	}
	item := d.Paths.Find(p)
	method := r.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	op := item.GetOperation(method)
	return op, &routers.Route{Spec: d.T, Path: p, PathItem: item, Method: method, Operation: op}
}

// path returns the document's path that r is for, or "".
func (d *Document) path(r *http.Request) string {
	if r.URL.Path == "" || path.Clean(r.URL.Path) != r.URL.Path {
		return ""
	}
	_, p := d.paths.Handler(&http.Request{Method: http.MethodGet, URL: r.URL, Host: "localhost"})
	return p
}

// checkElsewhere judges the answer to a request for what the document does not
// have.
func (d *Document) checkElsewhere(x Exchange) error {
	name := map[int]string{http.StatusForbidden: "Forbidden", http.StatusNotFound: "NoRoute"}[x.Status]
	if d.path(x.Request) != "" {
		name = map[int]string{http.StatusForbidden: "Forbidden", http.StatusMethodNotAllowed: "MethodNotAllowed"}[x.Status]
		if name == "MethodNotAllowed" && x.Header.Get("Allow") == "" {
			return errors.New("405 without Allow")
		}
	}
	if name == "" {
		return fmt.Errorf("status %d of what the document does not have", x.Status)
	}
	return d.checkBody(d.Components.Responses[name], x)
}

func (d *Document) checkBody(r *openapi3.ResponseRef, x Exchange) error {
	if len(r.Value.Content) == 0 {
		if len(x.Body) > 0 || x.Header.Get("Content-Type") != "" {
			return fmt.Errorf("status %d has a body, and the document has none here", x.Status)
		}
		return nil
	}
	ct, params, err := mime.ParseMediaType(x.Header.Get("Content-Type"))
	if err != nil {
		return fmt.Errorf("status %d: content type %q: %w", x.Status, x.Header.Get("Content-Type"), err)
	}
	media := r.Value.Content[ct]
	if media == nil {
		return fmt.Errorf("status %d: the document does not have content type %s here", x.Status, ct)
	}
	if x.Request.Method == http.MethodHead {
		return nil
	}
	if strings.HasPrefix(ct, "text/") && params["charset"] != "utf-8" {
		return fmt.Errorf("status %d: %s without its charset", x.Status, ct)
	}
	var v any = string(x.Body)
	switch {
	case ct == "text/event-stream":
		return d.checkStream(x)
	case strings.HasSuffix(ct, "json"):
		if v, err = parse(x.Body); err != nil {
			return fmt.Errorf("status %d: %w in %.300s", x.Status, err, x.Body)
		}
	}
	if err := d.visit(media.Schema, v); err != nil {
		return fmt.Errorf("status %d: %.2000s: %w", x.Status, x.Body, err)
	}
	return nil
}

// events are the schemas of a stream's events, the alternatives of StreamEvent.
var events = map[string]string{
	"phase": "PhaseEvent", "stdout": "OutputEvent", "stderr": "OutputEvent", "audit": "AuditEvent", "result": "ResultEvent", "end": "EndEvent",
}

// checkStream judges each event of a stream that has arrived whole.
func (d *Document) checkStream(x Exchange) error {
	ended := false
	rest := string(x.Body)
	for {
		block, after, whole := strings.Cut(rest, "\n\n")
		if !whole {
			break
		}
		rest = after
		if strings.HasPrefix(block, ": ") && !strings.Contains(block, "\n") {
			continue
		}
		if ended {
			return fmt.Errorf("an event after the end: %.300s", block)
		}
		e := map[string]any{}
		for line := range strings.SplitSeq(block, "\n") {
			name, value, ok := strings.Cut(line, ": ")
			if _, twice := e[name]; !ok || twice {
				return fmt.Errorf("an event with the line %.300q", line)
			}
			e[name] = value
			if name == "data" {
				var err error
				if e[name], err = parse([]byte(value)); err != nil {
					return fmt.Errorf("the data of an event: %w: %.300s", err, value)
				}
			}
		}
		kind, _ := e["event"].(string)
		if err := d.CheckSchema(events[kind], e); err != nil {
			return fmt.Errorf("event %.300q: %w", block, err)
		}
		ended = e["event"] == "end"
	}
	if rest != "" && !x.Cut {
		return fmt.Errorf("the stream ends within an event: %.300q", rest)
	}
	return nil
}

// CheckSchema returns how v, decoded JSON, is not what the schema called name
// describes.
func (d *Document) CheckSchema(name string, v any) error {
	s := d.Components.Schemas[name]
	if s == nil {
		return fmt.Errorf("the document has no schema %q", name)
	}
	return d.visit(s, v)
}

// parse decodes one JSON value, with nothing behind it but a line's end.
func parse(b []byte) (any, error) {
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		return nil, err
	}
	return v, nil
}

func hasParameter(r *routers.Route, name string) bool {
	is := func(p *openapi3.ParameterRef) bool { return p.Value.In == "query" && p.Value.Name == name }
	return slices.ContainsFunc(r.Operation.Parameters, is) || slices.ContainsFunc(r.PathItem.Parameters, is)
}

// Routes returns every method and path of the document: "GET /healthz".
func (d *Document) Routes() []string {
	var all []string
	for p, item := range d.Paths.Map() {
		for method := range item.Operations() {
			all = append(all, method+" "+p)
		}
	}
	slices.Sort(all)
	return all
}

// Codes returns the codes of problems that the document's responses list, each
// with its status.
func (d *Document) Codes() map[string]int {
	all := map[string]int{}
	for _, r := range d.Components.Responses {
		media := r.Value.Content["application/problem+json"]
		if media == nil {
			continue
		}
		for _, part := range media.Schema.Value.AllOf {
			status, code := part.Value.Properties["status"], part.Value.Properties["code"]
			if status == nil || code == nil || part.Ref != "" {
				continue
			}
			n, _ := status.Value.Const.(float64)
			for _, c := range code.Value.Enum {
				all[fmt.Sprint(c)] = int(n)
			}
		}
	}
	return all
}
