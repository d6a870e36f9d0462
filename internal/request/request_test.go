package request

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/enclave-run/enclave/internal/session"
)

func ptr(n int64) *int64 { return &n }

// full is a request with every field set.
func full() Request {
	return Request{
		Code: "print('<é>')\n", Argv: []string{"sh", ""}, Language: "python",
		Egress: session.Egress{Mode: "allowlist", Allow: []string{"api.example.com", "10.0.0.0/8:5432"}},
		Limits: Limits{Pids: ptr(64), MemoryMB: ptr(1), CPUMillis: ptr(2), CPUSeconds: ptr(3), WallSeconds: ptr(4), DiskMB: ptr(5), OutputBytes: ptr(6), EgressBytes: ptr(1_000_000)},
		Files:  map[string]string{"data/b.txt": "", "a.txt": "\x01\x7f\u2028\"\\/\b\f\n\r\t", "\uff61": "before 😀 by code points, behind it by UTF-16", "😀": "x"},
		Labels: map[string]string{"team": "räder"}, MinIsolation: "emulated", WebhookURL: "https://hooks.example.com/x?a=b&c", IdempotencyKey: "k",
	}
}

// TestEncodingIsTheGolden holds the encoding to a file that every SDK is held to.
func TestEncodingIsTheGolden(t *testing.T) {
	raw, err := os.ReadFile("../../api/testdata/request_canonical.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct {
		Request   json.RawMessage
		Canonical string
		Hash      string
		Hash1     string
	}
	if err := json.Unmarshal(raw, &cases); err != nil || len(cases) < 4 {
		t.Fatalf("%d cases, %v", len(cases), err)
	}
	for i, c := range cases {
		var r Request
		d := json.NewDecoder(bytes.NewReader(c.Request))
		d.DisallowUnknownFields()
		if err := d.Decode(&r); err != nil {
			t.Fatalf("case %d: %v", i, err)
		}
		var b strings.Builder
		if err := r.Encode(&b); err != nil {
			t.Fatal(err)
		}
		if b.String() != c.Canonical {
			t.Errorf("case %d is encoded as\n%s\nwant\n%s", i, b.String(), c.Canonical)
		}
		of := sha256.Sum256([]byte(c.Canonical))
		if want := "2:" + hex.EncodeToString(of[:]); c.Hash != want || r.Hash() != want {
			t.Errorf("case %d: the hash is %s, the file has %s, the SHA-256 of the canonical form is %s", i, r.Hash(), c.Hash, want)
		}
		if !r.Matches(c.Hash) || c.Hash1 != "" && !r.Matches(c.Hash1) { // the last came after version 1
			t.Errorf("case %d does not match its hashes %q and %q", i, c.Hash, c.Hash1)
		}
		for j, other := range cases {
			if j != i && (r.Matches(other.Hash) || r.Matches(other.Hash1)) {
				t.Errorf("case %d matches case %d", i, j)
			}
		}
		if r.Matches("") || r.Matches("2:") || r.Matches(strings.TrimPrefix(c.Hash, "2:")) || r.Matches("2:"+c.Hash1) || r.Matches("3:"+c.Hash1) {
			t.Errorf("case %d matches what is no hash of it", i)
		}
	}
}

// TestEveryFieldIsInTheHash changes one field after the other, by reflection, so
// that a new field can't be left out.
func TestEveryFieldIsInTheHash(t *testing.T) {
	base := full().Hash()
	var walk func(v reflect.Value, name string, r *Request)
	walk = func(v reflect.Value, name string, r *Request) {
		old := reflect.New(v.Type()).Elem()
		old.Set(v)
		switch v.Kind() {
		case reflect.Struct:
			for i := range v.NumField() {
				walk(v.Field(i), name+"."+v.Type().Field(i).Name, r)
			}
			return
		case reflect.String:
			v.SetString(v.String() + "x")
		case reflect.Pointer:
			v.Set(reflect.ValueOf(ptr(77)))
		case reflect.Slice:
			v.Set(reflect.ValueOf([]string{"other"}))
		case reflect.Map:
			v.Set(reflect.ValueOf(map[string]string{"other": ""}))
		default:
			t.Fatalf("%s is a %s, which the test does not know", name, v.Kind())
		}
		if changed := r.Hash() != base; changed == (name == ".IdempotencyKey") {
			t.Errorf("another %s: a hash of its own is %v", name, changed)
		}
		v.SetZero()
		if name != ".IdempotencyKey" && r.Hash() == base {
			t.Errorf("without %s the hash is the same", name)
		}
		v.Set(old)
	}
	r := full()
	walk(reflect.ValueOf(&r).Elem(), "", &r)
	if r.Hash() != base {
		t.Error("the request was not put back")
	}
}

// FuzzEncode has encoding/json read what Encode writes: nothing is lost, so that
// two requests never share an encoding.
func FuzzEncode(f *testing.F) {
	f.Add("print(1)", "a", "b", "k\"\\", int64(1))
	f.Add("\x00\x1f\u2028", "\U0001f600", "\uff61", "", int64(-1))
	f.Fuzz(func(t *testing.T, code, arg, name, value string, n int64) {
		for _, s := range []*string{&code, &arg, &name, &value} {
			*s = strings.ToValidUTF8(*s, "?")
		}
		r := Request{
			Code: code, Argv: []string{arg, value}, Files: map[string]string{name: value, arg: code}, Labels: map[string]string{value: name},
			Egress: session.Egress{Allow: []string{name}}, Limits: Limits{Pids: &n},
		}
		var b bytes.Buffer
		if err := r.Encode(&b); err != nil {
			t.Fatal(err)
		}
		var back Request
		if err := json.Unmarshal(b.Bytes(), &back); err != nil {
			t.Fatalf("%v in %s", err, b.Bytes())
		}
		if diff := cmp.Diff(r, back); diff != "" {
			t.Errorf("what is read is not what was written:\n%s", diff)
		}
		if !r.Matches(r.Hash()) || !r.Matches(r.hash1()) {
			t.Error("a request does not match its own hash")
		}
	})
}

func TestWorkPath(t *testing.T) {
	for name, want := range map[string]string{
		"a": "a", "/work/a": "a", "a/b": "a/b", "..a": "..a", "work/a": "work/a",
		"": "", "/work/": "", "/work": "", ".": "", "..": "", "../a": "", "/etc": "", "a/": "", "a//b": "", "./a": "", "/work//a": "", "a/../b": "",
	} {
		got, ok := WorkPath(name)
		if ok != (want != "") || ok && got != want {
			t.Errorf("%q: %q, %v; want %q", name, got, ok, want)
		}
	}
}
