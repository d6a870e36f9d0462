package enclave_test

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/enclave-run/enclave"
)

// golden are the documents of the API, each with the type that holds it.
func golden() map[string]any {
	return map[string]any{
		"session_request.json": new(enclave.SessionRequest), "session_request_minimal.json": new(enclave.SessionRequest),
		"session_pending.json": new(enclave.Session), "session_succeeded.json": new(enclave.Session), "session_killed.json": new(enclave.Session),
		"sessions.json": new(enclave.Page[enclave.Session]), "events.json": new(enclave.Page[enclave.Event]),
		"result.json": new(enclave.Result), "result_binary.json": new(enclave.Result), "result_killed.json": new(enclave.Result),
		"consistency.json": new(enclave.Consistency), "inclusion.json": new(enclave.Inclusion),
		"problem.json": new(enclave.Error), "problem_field.json": new(enclave.Error),
		"key_request.json": new(enclave.KeyRequest), "key_created.json": new(enclave.CreatedKey), "keys.json": new(enclave.Page[enclave.Key]),
		"principal.json": new(enclave.Principal),
		"health.json":    new(enclave.Health), "health_not_ready.json": new(enclave.Health),
		"usage.json":   new(enclave.UsageReport),
		"webhook.json": new(enclave.WebhookEvent), "webhook_key.json": new(enclave.WebhookKey),
		"queue.json":             new(enclave.Queue),
		"stream.json":            nil, // TestGoldenStream
		"request_canonical.json": nil, // internal/request
	}
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("api/testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func indented(t *testing.T, v any) string {
	t.Helper()
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestGoldenDocumentsSurviveTheTypes(t *testing.T) {
	files, err := filepath.Glob("api/testdata/*.json")
	if err != nil {
		t.Fatal(err)
	}
	types := golden()
	if len(files) != len(types) {
		t.Errorf("%d files, %d types", len(files), len(types))
	}
	for _, f := range files {
		v, ok := types[filepath.Base(f)]
		if !ok {
			t.Errorf("nothing decodes %s", f)
		}
		if v == nil {
			continue
		}
		want := read(t, filepath.Base(f))
		d := json.NewDecoder(bytes.NewReader(want))
		d.DisallowUnknownFields()
		if err := d.Decode(v); err != nil {
			t.Errorf("%s: %v", f, err)
			continue
		}
		if got := indented(t, v); got != string(want) {
			t.Errorf("%s became\n%s", f, got)
		}
	}
}

// EventData must know every field there is, or Detail would lose it.
func TestDetailLosesNothing(t *testing.T) {
	var p enclave.Page[enclave.Event]
	if err := json.Unmarshal(read(t, "events.json"), &p); err != nil {
		t.Fatal(err)
	}
	for _, e := range p.Items {
		d, err := e.Detail()
		if err != nil {
			t.Fatal(err)
		}
		var raw bytes.Buffer
		if err := json.Compact(&raw, e.Data); err != nil {
			t.Fatal(err)
		}
		got, err := json.Marshal(d)
		if err != nil || string(got) != raw.String() {
			t.Errorf("%s became %s, %v", raw.String(), got, err)
		}
	}
}

func TestExactOutput(t *testing.T) {
	var r enclave.Result
	if err := json.Unmarshal(read(t, "result_binary.json"), &r); err != nil {
		t.Fatal(err)
	}
	if got := r.StdoutBytes(); string(got) != "\x00\xffA" {
		t.Errorf("stdout %q", got)
	}
	r = enclave.Result{Stdout: "out", Stderr: "err"}
	if string(r.StdoutBytes())+string(r.StderrBytes()) != "outerr" {
		t.Error("text is not its own bytes")
	}
}

func TestGoldenStream(t *testing.T) {
	sse := read(t, "stream.sse")
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
		w.Write(sse)
	}))
	defer srv.Close()
	var got []any
	var stdout strings.Builder
	for e, err := range (&enclave.Client{BaseURL: srv.URL}).Stream(context.Background(), "s-0a1b2c-7", "") {
		if err != nil {
			t.Fatal(err)
		}
		var data any = struct{}{}
		switch e.Kind {
		case enclave.StreamPhase:
			data = struct {
				Phase enclave.Phase `json:"phase"`
			}{e.Phase}
		case enclave.StreamStdout:
			stdout.Write(e.Output)
			data = struct {
				Text string `json:"text"`
			}{string(e.Output)}
		case enclave.StreamStderr:
			data = struct {
				Base64 []byte `json:"base64"`
			}{e.Output}
		case enclave.StreamAudit:
			data = e.Audit
		case enclave.StreamResult:
			data = e.Result
			if e.Result.Stdout != "" || e.Result.StdoutSize != int64(stdout.Len()) {
				t.Errorf("streamed %q, the result says %q and %d", stdout.String(), e.Result.Stdout, e.Result.StdoutSize)
			}
		}
		got = append(got, struct {
			ID   string `json:"id"`
			Kind string `json:"kind"`
			Data any    `json:"data"`
		}{e.ID, e.Kind, data})
	}
	if got, want := indented(t, got), string(read(t, "stream.json")); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
