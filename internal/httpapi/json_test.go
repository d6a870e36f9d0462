package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"unicode/utf8"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/request"
	"github.com/enclave-run/enclave/internal/session"
)

// A client's request and the server's reading of it must have the same fields.
func TestCreateRequestHasTheFieldsOfTheSDK(t *testing.T) {
	var names func(t reflect.Type) map[string]any
	names = func(t reflect.Type) map[string]any {
		m := map[string]any{}
		for i := range t.NumField() {
			f := t.Field(i)
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			m[name] = nil
			if f.Type.Kind() == reflect.Struct {
				m[name] = names(f.Type)
			}
		}
		return m
	}
	sdk, ours := names(reflect.TypeFor[enclave.SessionRequest]()), names(reflect.TypeFor[request.Request]())
	if !reflect.DeepEqual(sdk, ours) {
		t.Errorf("the SDK has %v, the server %v", sdk, ours)
	}
}

func TestEveryFieldReachesThePlane(t *testing.T) {
	r := newRig(t)
	r.plane.fail = &request.FieldError{Field: "code", Detail: "no plane would take all of these together"}
	body := `{"code":"c","argv":["a"],"language":"node","egress":{"mode":"allowlist","allow":["x.example"]},
		"limits":{"pidsLimit":0,"memoryMb":-1,"cpuMillis":3,"cpuSeconds":4,"wallSeconds":5,"diskMb":6,"outputBytes":7},
		"files":{"f":"1"},"labels":{"l":"2"},"webhookUrl":"https://h.example/x","minIsolation":"microvm","idempotencyKey":"k"}`
	if resp, text := r.do(t, "POST", "/v1/sessions", "DEV", strings.NewReader(body)); resp.StatusCode != http.StatusBadRequest || !strings.Contains(text, "no plane") {
		t.Fatal(text)
	}
	q := r.plane.requests()[0]
	// 0 and -1 must arrive as such, to be refused: nil would be the default.
	l := q.Limits
	if l.Pids == nil || *l.Pids != 0 || l.MemoryMB == nil || *l.MemoryMB != -1 || *l.CPUMillis != 3 || *l.CPUSeconds != 4 ||
		*l.WallSeconds != 5 || *l.DiskMB != 6 || *l.OutputBytes != 7 || l.EgressBytes != nil {
		t.Errorf("limits %+v", l)
	}
	if q.Code != "c" || q.Argv[0] != "a" || q.Language != "node" || q.Egress.Mode != "allowlist" || q.Egress.Allow[0] != "x.example" ||
		q.Files["f"] != "1" || q.Labels["l"] != "2" || q.WebhookURL != "https://h.example/x" || q.MinIsolation != "microvm" || q.IdempotencyKey != "k" {
		t.Errorf("%+v", q)
	}
}

// endless is a body without an end, which counts what was read of it.
type endless struct{ read atomic.Int64 }

func (e *endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	e.read.Add(int64(len(p)))
	return len(p), nil
}

func TestEndlessBodyIsCut(t *testing.T) {
	r := newRig(t)
	body := new(endless)
	resp, text := r.do(t, "POST", "/v1/sessions", "DEV", body)
	if resp.StatusCode != http.StatusBadRequest || !strings.Contains(text, `"code":"body_too_large"`) {
		t.Errorf("%d %s", resp.StatusCode, text)
	}
	if body.read.Load() > 2*maxBody {
		t.Errorf("%d bytes were taken", body.read.Load())
	}
	if len(r.plane.requests()) != 0 {
		t.Error("a session was created")
	}
}

// Who may not create a session must not make the server read a body either.
func TestBodyIsNotReadWithoutScope(t *testing.T) {
	r := newRig(t)
	for key, want := range map[string]int{"": 401, "VIEWER": 403} {
		body := new(endless)
		resp, err := func() (*http.Response, error) {
			req, err := http.NewRequestWithContext(t.Context(), "POST", "http://"+r.addr+"/v1/sessions", body)
			if err != nil {
				return nil, err
			}
			req.Header.Set("Authorization", "Bearer "+r.key[key])
			req.Header.Set("Content-Type", "application/json")
			tr := &http.Transport{DisableKeepAlives: true}
			defer tr.CloseIdleConnections()
			return tr.RoundTrip(req)
		}()
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("status %d, want %d", resp.StatusCode, want)
		}
		if body.read.Load() >= maxBody {
			t.Errorf("%d bytes of the body were taken", body.read.Load())
		}
	}
}

func TestBigButLegalBodyIsRead(t *testing.T) {
	r := newRig(t)
	code := strings.Repeat("print(\"é\")\n", 800_000) // 9.6 MB
	h, err := r.client("DEV").Run(t.Context(), enclave.SessionRequest{Code: code, Files: map[string]string{"f": code}})
	if err != nil {
		t.Fatal(err)
	}
	if h.ID() == "" || r.plane.requests()[0].Code != code || r.plane.requests()[0].Files["f"] != code {
		t.Error("the code was changed on the way")
	}
}

func TestNestingAndNumberAreBounded(t *testing.T) {
	for name, body := range map[string]string{
		"arrays in code":       `{"code":` + strings.Repeat("[", 1_000_000),
		"objects in labels":    `{"labels":` + strings.Repeat(`{"a":`, 1_000_000),
		"arrays in allow":      `{"egress":{"allow":` + strings.Repeat("[", 1_000_000),
		"arrays":               strings.Repeat("[", 1_000_000),
		"members of files":     `{"files":{` + manyMembers(maxMembers+1) + `}}`,
		"elements of allow":    `{"egress":{"allow":[` + strings.Repeat(`"",`, maxMembers) + `""]}}`,
		"a long unknown field": `{"` + strings.Repeat("x", 1<<20) + `":1}`,
	} {
		var q request.Request
		err := decode([]byte(body), &q)
		var bad *refusal
		if !errors.As(err, &bad) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if len(bad.detail)+len(bad.field) > 300 {
			t.Errorf("%s: the answer has %d bytes", name, len(bad.detail)+len(bad.field))
		}
	}
	var q request.Request
	if err := decode([]byte(`{"files":{`+manyMembers(maxMembers)+`}}`), &q); err != nil || len(q.Files) != maxMembers {
		t.Errorf("%d members: %v", maxMembers, err)
	}
}

// A boolean is one in JSON too: not a number, not a string, and null is not false.
func TestBooleansAreReadAsSuch(t *testing.T) {
	type body struct {
		Root  bool   `json:"root"`
		Maybe *bool  `json:"maybe"`
		Name  string `json:"name"`
	}
	var b body
	if err := decode([]byte(`{"root":true,"maybe":false}`), &b); err != nil || !b.Root || b.Maybe == nil || *b.Maybe {
		t.Errorf("%+v, %v", b, err)
	}
	for text, want := range map[string]string{
		`{"root":1}`:      "must be true or false",
		`{"root":"true"}`: "must be true or false",
		`{"root":[]}`:     "must be true or false",
		`{"root":{}}`:     "must be true or false",
		`{"root":null}`:   "is null",
		`{"name":true}`:   "must be a string",
		`true`:            "must be an object",
	} {
		err := decode([]byte(text), new(body))
		if bad := (*refusal)(nil); !errors.As(err, &bad) || !strings.Contains(bad.detail, want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	if err := decode([]byte(`{"root":tru}`), new(body)); err == nil {
		t.Error("half a word was taken for a boolean")
	}
}

func manyMembers(n int) string {
	var b strings.Builder
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(`"` + strings.Repeat("a", i%50) + string(rune('a'+i%26)) + strings.Repeat("b", i/50) + `":""`)
	}
	return b.String()
}

// The oracle is encoding/json: what decode accepts it must accept too and
// understand the same; what decode refuses must break one of the rules, as a
// walk over encoding/json's tokens sees them.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		`{"code":"x"}`, `{"code":"x","code":"y"}`, `{"Code":"x"}`, `{"code":null}`, `{"limits":{"pidsLimit":1e2}}`,
		`{"code":"\ud83d\ude00\u00e9"}`, `{"code":"\ud800"}`, `{"code":"\ud800\u0041"}`, "{\"code\":\"\xff\"}", `{"files":{"":"","a":"b"}}`, `{"egress":{"allow":[]}}`,
		`{"egress":{"allow":["a","b"]}}`, ` { } `, `[]`, `1`, `"x"`, `{}{}`, `{"code":"x"}x`, `{"argv":["a",]}`, `{"limits":{"diskMb":-0}}`,
		`{"limits":{"diskMb":01}}`, `{"limits":{"diskMb":9223372036854775807}}`, `{"code":"\u0000\/\b"}`, "{\"code\":\"\n\"}", `{"a":1}`, `{"files":{"a":1}}`, "\ufeff{}",
		`{"code":"\uD83D\uDE00 \u0`, `{"code":true}`, `{"argv":null}`, `{"c\u006fde":"x","code":"y"}`, `{"code":"\uDC00"}`, `{"code":"\u00G0"}`, `{"code":"\u:;<="}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var got, want request.Request
		err := decode(b, &got)
		std := json.NewDecoder(bytes.NewReader(b))
		std.DisallowUnknownFields()
		stdErr := std.Decode(&want)
		if stdErr == nil {
			if _, err := std.Token(); err != io.EOF {
				stdErr = errors.New("data after the value")
			}
		}
		if err == nil {
			if stdErr != nil || !reflect.DeepEqual(got, want) {
				t.Fatalf("%q: accepted as %+v; encoding/json has %+v, %v", b, got, want, stdErr)
			}
			if rule := broken(b); rule != "" {
				t.Fatalf("%q: accepted, but %s", b, rule)
			}
			return
		}
		if stdErr == nil && broken(b) == "" {
			t.Fatalf("%q: refused without need: %v", b, err)
		}
	})
}

// broken returns which rule the JSON text b breaks that encoding/json does not
// enforce, or "".
func broken(b []byte) string {
	if !utf8.Valid(b) {
		return "it is not UTF-8"
	}
	// A surrogate that stands alone becomes U+FFFD; nothing else does.
	compact := strings.NewReplacer("\uFFFD", "", `\ufffd`, "", `\uFFFD`, "").Replace(string(b))
	type frame struct {
		object bool
		keys   map[string]bool
		name   string
		isKey  bool
		n      int
	}
	d := json.NewDecoder(bytes.NewReader(b))
	var stack []*frame
	for {
		tok, err := d.Token()
		if err != nil {
			return ""
		}
		var top *frame
		if len(stack) > 0 {
			top = stack[len(stack)-1]
		}
		if s, ok := tok.(string); ok && strings.ContainsRune(s, utf8.RuneError) && strings.Contains(compact, `\u`) {
			return "it may hold half a surrogate pair"
		}
		if top != nil && top.object && top.isKey {
			if s, ok := tok.(string); ok {
				if top.keys[s] {
					return "a key is there twice"
				}
				top.keys[s], top.name, top.isKey = true, s, false
				if top.n++; top.n > maxMembers {
					return "it has too many members"
				}
				if len(stack) == 1 && !known(reflect.TypeFor[request.Request](), s) ||
					len(stack) == 2 && stack[0].name == "limits" && !known(reflect.TypeFor[request.Limits](), s) ||
					len(stack) == 2 && stack[0].name == "egress" && !known(reflect.TypeFor[session.Egress](), s) {
					return "a key has another case"
				}
				continue
			}
		}
		if tok == nil {
			return "it holds null"
		}
		if top != nil {
			top.isKey = top.object
			if !top.object {
				if top.n++; top.n > maxMembers {
					return "it has too many members"
				}
			}
		}
		if c, ok := tok.(json.Delim); ok {
			switch c {
			case '{':
				stack = append(stack, &frame{object: true, keys: map[string]bool{}, isKey: true})
			case '[':
				stack = append(stack, &frame{})
			default:
				stack = stack[:len(stack)-1]
			}
		}
	}
}

func known(t reflect.Type, name string) bool {
	for i := range t.NumField() {
		if t.Field(i).Tag.Get("json") == name {
			return true
		}
	}
	return false
}

// Raw JSON is read on terminals: nothing in it, whoever wrote it, acts there.
func TestAnswersAreInertOnATerminal(t *testing.T) {
	got, err := encode(map[string]any{"k\u009b": "a\u202eb\u007f\u061c", "raw": json.RawMessage("\"\u009b31m\u2066\"")})
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"k\u009b":"a\u202eb\u007f\u061c","raw":"\u009b31m\u2066"}` + "\n"; string(got) != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
