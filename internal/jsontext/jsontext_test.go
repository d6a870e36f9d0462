package jsontext

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

// standard is src as encoding/json writes it in a string, without the quotes,
// after what it calls invalid was replaced: the oracle of AppendString.
func standard(t testing.TB, src []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	var valid strings.Builder // []rune of src, which is what bytes.ToValidUTF8 is not: one U+FFFD for each byte
	for _, r := range string(src) {
		valid.WriteRune(r)
	}
	if err := e.Encode(valid.String()); err != nil {
		t.Fatal(err)
	}
	out := bytes.TrimSpace(b.Bytes())
	return out[1 : len(out)-1]
}

// inPieces escapes src in pieces of n bytes.
func inPieces(t testing.TB, src []byte, n int) []byte {
	t.Helper()
	var out, rest []byte
	for at := 0; at < len(src); at += n {
		rest = append(rest, src[at:min(at+n, len(src))]...)
		var took int
		out, took = AppendString(out, rest, false)
		if rest = rest[took:]; len(rest) >= utf8.UTFMax {
			t.Fatalf("%d bytes were left", len(rest))
		}
	}
	out, took := AppendString(out, rest, true)
	if took != len(rest) {
		t.Fatalf("of the last %d bytes %d were taken", len(rest), took)
	}
	return out
}

func TestEveryCharacterIsWrittenAsTheStandardLibraryDoesOrAsItsEscape(t *testing.T) {
	for r := rune(0); r <= unicode.MaxRune; r++ {
		src := utf8.AppendRune(nil, r)
		got, _ := AppendString(nil, src, true)
		var back string
		if err := json.Unmarshal([]byte(`"`+string(got)+`"`), &back); err != nil || back != string(src) {
			t.Fatalf("%U is written as %s: %q, %v", r, got, back, err)
		}
		if raw := bytes.Equal(got, src); raw && Steers(r) || r < 0x20 && raw {
			t.Errorf("%U is written raw", r)
		}
		if !Steers(r) && !bytes.Equal(got, standard(t, src)) {
			t.Errorf("%U is %s, the standard library writes %s", r, got, standard(t, src))
		}
		whole := Inert(append(append([]byte(`{"`), standard(t, src)...), `":[0]}`...))
		if want := `{"` + string(got) + `":[0]}`; string(whole) != want {
			t.Errorf("%U: Inert wrote %s, want %s", r, whole, want)
		}
	}
}

// What acts on a terminal or on the order of what is read is named here by
// Unicode's own tables, not by the code's ranges.
func TestNothingThatSteersIsMissed(t *testing.T) {
	for r := rune(0x20); r <= unicode.MaxRune; r++ {
		acts := unicode.Is(unicode.Cc, r) || unicode.Is(unicode.Bidi_Control, r) || unicode.Is(unicode.Zl, r) || unicode.Is(unicode.Zp, r)
		if acts != Steers(r) {
			t.Errorf("%U: %t", r, Steers(r))
		}
	}
}

func TestTextWithoutSuchCharactersIsNotCopied(t *testing.T) {
	text := []byte(`{"a":"é – ü"}`)
	if got := Inert(text); &got[0] != &text[0] || len(got) != len(text) {
		t.Errorf("%s", got)
	}
}

func FuzzStringInPieces(f *testing.F) {
	f.Add([]byte("plain\n\"\\\x00\x7f\x1b]52;c;x\x07"), 3)
	f.Add([]byte("é\u2028\u202e\u009b31m😀\xff\xc3\xe2\x80\xf0\x9f\x98"), 1)
	f.Add([]byte("\xed\xa0\x80\xc0\xaf\xf8"), 2)
	f.Fuzz(func(t *testing.T, src []byte, n int) {
		if n <= 0 || n > 64 {
			n = 1
		}
		want := Inert(standard(t, src))
		if got := inPieces(t, src, n); !bytes.Equal(got, want) {
			t.Errorf("in pieces of %d: %s, want %s", n, got, want)
		}
	})
}

func BenchmarkAppendString(b *testing.B) {
	src := bytes.Repeat([]byte("a line of output, as most are\n"), 2000)
	dst := make([]byte, 0, 2*len(src))
	b.SetBytes(int64(len(src)))
	for b.Loop() {
		dst, _ = AppendString(dst[:0], src, true)
	}
}
