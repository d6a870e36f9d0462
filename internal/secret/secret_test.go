package secret

import (
	"bytes"
	"encoding/gob"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"slices"
	"strings"
	"testing"
)

const plain = "correct-horse-Battery-staple-4711"

// holders are the ways in which code holds a Value. Each is printed by
// reflection in its own way.
func holders() map[string]any {
	v := New(plain)
	type inner struct{ v Value }
	type outer struct {
		Exported Value
		hidden   Value
		pointer  *Value
		slice    []Value
		byName   map[string]Value
		any      any
		inner    inner
		deep     *inner
		function func() string
	}
	full := outer{v, v, &v, []Value{v}, map[string]Value{"k": v}, v, inner{v}, &inner{v}, v.reveal}
	vault := &Vault{}
	if err := vault.Put("canary", v); err != nil {
		panic(err)
	}
	return map[string]any{
		"value":           v,
		"pointer":         &v,
		"slice":           []Value{v},
		"array":           [1]Value{v},
		"map":             map[string]Value{"k": v},
		"interface":       []any{v, &v},
		"struct":          full,
		"pointer struct":  &full,
		"unexported":      inner{v},
		"pointer to that": &inner{v},
		"error":           fmt.Errorf("with %w and %v", errors.New("x"), v),
		"vault":           vault,
		"scanner":         NewScanner(v),
		"scanner value":   *NewScanner(v),
		"vault's scanner": vault.Scanner(),
		"zero value":      Value{},
	}
}

func leaks(t *testing.T, how, out string) {
	t.Helper()
	if tells(out) {
		t.Errorf("%s prints %q", how, out)
	}
}

// tells reports whether out has the start of plain in one of the forms in which
// fmt prints bytes and strings.
func tells(out string) bool {
	for _, f := range []string{
		plain[:8],
		fmt.Sprintf("%x", plain[:8]),
		fmt.Sprintf("% x", plain[:8]),
		strings.Trim(fmt.Sprintf("%d", []byte(plain[:8])), "[]"),
		strings.Trim(fmt.Sprintf("%#v", []byte(plain[:4])), "[]byte{}"),
		strings.Trim(fmt.Sprintf("%o", []byte(plain[:4])), "[]"),
		strings.Trim(fmt.Sprintf("%b", []byte(plain[:4])), "[]"),
		strings.Trim(fmt.Sprintf("%U", []byte(plain[:4])), "[]"),
	} {
		if strings.Contains(strings.ToLower(out), strings.ToLower(f)) {
			return true
		}
	}
	return false
}

func TestNoVerbPrintsASecret(t *testing.T) {
	var verbs []string
	for _, flag := range []string{"", "+", "#", "-", " ", "0", "#+", "40", ".3", "#.40", " #"} {
		for c := 'a'; c <= 'z'; c++ {
			verbs = append(verbs, "%"+flag+string(c), "%"+flag+string(c-'a'+'A'))
		}
	}
	for name, h := range holders() {
		for _, verb := range verbs {
			leaks(t, name+" with "+verb, fmt.Sprintf(verb, h))
		}
		leaks(t, name+" with Sprint", fmt.Sprint(h))
		leaks(t, name+" with Sprintln", fmt.Sprintln(h))
	}
}

func TestNoLogPrintsASecret(t *testing.T) {
	for name, h := range holders() {
		for kind, handler := range map[string]func(*bytes.Buffer) slog.Handler{
			"text": func(b *bytes.Buffer) slog.Handler { return slog.NewTextHandler(b, nil) },
			"json": func(b *bytes.Buffer) slog.Handler { return slog.NewJSONHandler(b, nil) },
		} {
			var b bytes.Buffer
			l := slog.New(handler(&b))
			l.Info("m", "k", h)
			l.With("with", h).WithGroup("g").Info("m", slog.Group("g", "k", h), slog.Any("a", []any{h}))
			leaks(t, name+" in slog "+kind, b.String())
		}
		var b bytes.Buffer
		log.New(&b, "", 0).Print(h)
		leaks(t, name+" in log", b.String())
	}
}

func TestNoEncoderWritesASecret(t *testing.T) {
	for name, h := range holders() {
		if b, err := json.Marshal(h); err == nil {
			leaks(t, name+" in JSON", string(b))
		}
		if b, err := xml.Marshal(h); err == nil {
			leaks(t, name+" in XML", string(b))
		}
		var b bytes.Buffer
		_ = gob.NewEncoder(&b).Encode(h) // what it wrote counts, also before an error
		leaks(t, name+" in gob", b.String())
	}
	v := New(plain)
	for how, got := range map[string]string{
		"String":   v.String(),
		"GoString": v.GoString(),
		"Sprintf":  fmt.Sprintf("%s", v),
		"pointer":  fmt.Sprintf("%v", &v),
		"slog":     v.LogValue().String(),
	} {
		if got != redacted {
			t.Errorf("%s is %q, want %q", how, got, redacted)
		}
	}
	if b, err := json.Marshal(map[string]Value{"k": v}); err != nil || string(b) != `{"k":"[secret]"}` {
		t.Errorf("JSON is %s, %v", b, err)
	}
}

// TestTheLeakCheckSees shows that tells is not blind: a naive Value leaks.
func TestTheLeakCheckSees(t *testing.T) {
	type naive struct{ b []byte }
	for _, verb := range []string{"%v", "%s", "%x", "% x", "%X", "%#v", "%o", "%b", "%U", "%d", "%q"} {
		if out := fmt.Sprintf(verb, naive{[]byte(plain)}); !tells(out) {
			t.Errorf("%s prints %q, which was not noticed", verb, out)
		}
	}
}

func TestVaultNamesButDoesNotTell(t *testing.T) {
	var v Vault
	for _, name := range []string{"b", "a-1"} {
		if err := v.Put(name, New(plain+name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.Put("b", New("another")); !errors.Is(err, ErrExists) {
		t.Errorf("putting a name twice: %v, want ErrExists", err)
	}
	for _, name := range []string{"", "A", "1a", "a b", "a.b", "-a", strings.Repeat("a", 64), "a\n", plain} {
		err := v.Put(name, New("x"))
		if err == nil {
			t.Errorf("the name %q was accepted", name)
		} else if name == plain {
			leaks(t, "the error of a bad name", err.Error())
		}
	}
	for _, empty := range []Value{{}, New("")} {
		if err := v.Put("empty", empty); err == nil {
			t.Error("an empty secret was accepted")
		}
	}
	if got := v.Names(); !slices.Equal(got, []string{"a-1", "b"}) {
		t.Errorf("names are %q", got)
	}
	if _, ok := v.Scanner().Find([]byte("x " + plain + "b y")); !ok {
		t.Error("the Vault's Scanner does not find what it holds")
	}
	v.Remove("b")
	v.Remove("b")
	if got := v.Names(); !slices.Equal(got, []string{"a-1"}) {
		t.Errorf("names are %q after a removal", got)
	}
}
