package secret

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"crypto/sha256"
	"encoding/base32"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/url"
	"strings"
	"testing"
	"unicode/utf16"
)

// The canaries of the demos are of these kinds: a token, and bytes without form.
func canaries() map[string]string {
	rnd := rand.New(rand.NewPCG(7, 7))
	random := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		return b
	}
	enc := base64.RawURLEncoding.EncodeToString
	return map[string]string{
		"jwt":    enc([]byte(`{"alg":"HS256","typ":"JWT"}`)) + "." + enc(fmt.Appendf(nil, `{"jti":"%x"}`, random(16))) + "." + enc(random(32)),
		"opaque": "q" + hex.EncodeToString(random(20)),
		"mixed":  "Zk9$" + enc(random(24)) + "!x",
	}
}

type encoding struct {
	name   string
	encode func(string) string
}

// encodings are the 32 in which a workload might write a secret.
func encodings() []encoding {
	b64 := base64.StdEncoding.EncodeToString
	each := func(format, sep string) func(string) string {
		return func(s string) string {
			var parts []string
			for i := range len(s) {
				parts = append(parts, fmt.Sprintf(format, s[i]))
			}
			return strings.Join(parts, sep)
		}
	}
	chunks := func(s string, n int) (out []string) {
		for len(s) > n {
			out, s = append(out, s[:n]), s[n:]
		}
		return append(out, s)
	}
	reverse := func(s string) string {
		b := []byte(s)
		for i, j := 0, len(b)-1; i < j; i, j = i+1, j-1 {
			b[i], b[j] = b[j], b[i]
		}
		return string(b)
	}
	gz := func(s string) string {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		_, _ = w.Write([]byte(s))
		_ = w.Close()
		return b.String()
	}
	xor := func(s string) string {
		b := []byte(s)
		for i := range b {
			b[i] ^= 0x5a
		}
		return string(b)
	}
	return []encoding{
		{"raw", func(s string) string { return s }},
		{"upper", strings.ToUpper},
		{"reversed", reverse},
		{"hex", each("%02x", "")},
		{"HEX", each("%02X", "")},
		{"hex with colons", each("%02x", ":")},
		{"base64 at offset 0", func(s string) string { return b64([]byte(s)) }},
		{"base64 at offset 1", func(s string) string { return b64([]byte("k" + s)) }},
		{"base64 at offset 2", func(s string) string { return b64([]byte("k=" + s)) }},
		{"base64url", func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }},
		{"wrapped base64", func(s string) string { return strings.Join(chunks(b64([]byte(s)), 16), "\n") }},
		{"base64 of base64", func(s string) string { return b64([]byte(b64([]byte(s)))) }},
		{"base64 of reversed", func(s string) string { return b64([]byte(reverse(s))) }},
		{"base32", func(s string) string { return base32.StdEncoding.EncodeToString([]byte(s)) }},
		{"percent", each("%%%02X", "")},
		{"JSON escapes", each(`\u%04x`, "")},
		{"HTML entities", each("&#x%x;", "")},
		{"UTF-16LE", func(s string) string {
			var b []byte
			for _, u := range utf16.Encode([]rune(s)) {
				b = append(b, byte(u), byte(u>>8))
			}
			return string(b)
		}},
		{"gzip", gz},
		{"zlib", func(s string) string {
			var b bytes.Buffer
			w := zlib.NewWriter(&b)
			_, _ = w.Write([]byte(s))
			_ = w.Close()
			return b.String()
		}},
		{"gzip and base64", func(s string) string { return b64([]byte(gz(s))) }},
		{"gzip and hex", func(s string) string { return hex.EncodeToString([]byte(gz(s))) }},
		{"rot13", func(s string) string {
			return strings.Map(func(r rune) rune {
				const from, to = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", "nopqrstuvwxyzabcdefghijklmNOPQRSTUVWXYZABCDEFGHIJKLM"
				if i := strings.IndexRune(from, r); i >= 0 {
					return rune(to[i])
				}
				return r
			}, s)
		}},
		{"spaced", each("%c", " ")},
		{"split by newlines", func(s string) string { return strings.Join(chunks(s, 5), "\n") }},
		{"JSON array of chunks", func(s string) string {
			b, _ := json.Marshal(chunks(s, 6))
			return string(b)
		}},
		{"first half", func(s string) string { return s[:len(s)/2] }},
		{"second half", func(s string) string { return s[len(s)/2:] }},
		{"decimal list", each("%d", ", ")},
		{"xor", xor},
		{"xor and base64", func(s string) string { return b64([]byte(xor(s))) }},
		{"interleaved", each("%cK", "")},
	}
}

// places are where an encoding may stand.
func places() map[string]func(string) string {
	rnd := rand.New(rand.NewPCG(8, 8))
	junk := func(n int) string {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		return string(b)
	}
	return map[string]func(string) string{
		"alone":     func(s string) string { return s },
		"in a line": func(s string) string { return "2026-11-21 stdout: <" + s + "> done\n" },
		"in random": func(s string) string { return junk(301) + "\x00" + s + "\x00" + junk(200) },
		"in a document": func(s string) string {
			b, _ := json.Marshal(map[string]any{"id": "s-1", "stdout": s})
			return string(b)
		},
	}
}

func TestEncodingsAreFound(t *testing.T) {
	for kind, canary := range canaries() {
		s := NewScanner(New("another secret entirely 92b1"), New(canary))
		for place, put := range places() {
			found := 0
			for _, e := range encodings() {
				text := e.encode(canary)
				if place == "in a document" && !json.Valid([]byte(`"`+text+`"`)) && strings.ContainsFunc(text, func(r rune) bool { return r == '\ufffd' }) {
					found++ // bytes that are no text do not survive JSON
					continue
				}
				how, ok := s.Find([]byte(put(text)))
				if ok {
					found++
				} else {
					t.Logf("%s, %s, %s: not found", kind, e.name, place)
				}
				leaksCanary(t, how, canary)
			}
			if n := len(encodings()); n != 32 || found != n {
				t.Errorf("%s %s: found %d of %d encodings", kind, place, found, n)
			}
		}
	}
}

func leaksCanary(t *testing.T, how, canary string) {
	t.Helper()
	for i := 0; i+6 <= len(canary); i++ {
		if strings.Contains(how, canary[i:i+6]) {
			t.Errorf("the name of the encoding tells the secret: %q", how)
		}
	}
}

func TestRandomBytesHaveNoSecret(t *testing.T) {
	var values []Value
	for _, c := range canaries() {
		values = append(values, New(c))
	}
	s := NewScanner(values...)
	rnd := rand.New(rand.NewPCG(1, 2))
	blob := make([]byte, 400)
	for i := range 4000 {
		for j := range blob {
			blob[j] = byte(rnd.Uint32())
		}
		var b []byte
		switch i % 5 {
		case 0:
			b = blob
		case 1:
			b = []byte(base64.StdEncoding.EncodeToString(blob))
		case 2:
			b = []byte(hex.EncodeToString(blob))
		case 3:
			b = fmt.Append(nil, blob)
		case 4:
			b = []byte(base32.StdEncoding.EncodeToString(blob))
		}
		if how, ok := s.Find(b); ok {
			t.Fatalf("found %q in random blob %d", how, i)
		}
	}
}

// TestOrdinaryTextHasNoSecret has what public surfaces are full of: other
// tokens of the same issuer, hashes, runs of one byte.
func TestOrdinaryTextHasNoSecret(t *testing.T) {
	var values []Value
	for _, c := range canaries() {
		values = append(values, New(c))
	}
	s := NewScanner(append(values, New("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab"), New(strings.Repeat("xy", 20)), Value{}, New(""))...)
	header := strings.Split(canaries()["jwt"], ".")[0]
	for _, text := range []string{
		"", "a", strings.Repeat("a", 30), strings.Repeat("xyz", 100), strings.Repeat("\x00", 1000),
		header + "." + base64.RawURLEncoding.EncodeToString([]byte(`{"jti":"another"}`)) + ".c2lnbmF0dXJl",
		fmt.Sprintf("%x", sha256.Sum256([]byte("x"))),
		`{"type":"egress_denied","data":{"host":"169.254.169.254","port":80,"protocol":"tcp","reason":"not_allowed","count":1}}`,
		strings.Repeat("The quick brown fox jumps over the lazy dog. ", 50),
	} {
		if how, ok := s.Find([]byte(text)); ok {
			t.Errorf("found %q in %q", how, text)
		}
	}
	if how, ok := s.Find([]byte(strings.Repeat("a", 39) + "b")); !ok {
		t.Errorf("a monotonous secret was not found whole: %q", how)
	}
}

func TestShortSecretIsFoundWhole(t *testing.T) {
	s := NewScanner(New("hunter2"), New("tr0ub4dor&3"))
	for text, want := range map[string]bool{
		"the password is hunter2":      true,
		"the password is HUNTER2":      true,
		"tr0ub4dor&3":                  true,
		"dHIwdWI0ZG9yJjM=":             true,
		"a hunter 3":                   false,
		"a hunter3":                    false,
		"tr0ub4dor&4":                  false,
		`{"p":"h\u0075nter2"}`:         true,
		url.QueryEscape("tr0ub4dor&3"): true,
	} {
		if _, got := s.Find([]byte(text)); got != want {
			t.Errorf("%q: found is %v, want %v", text, got, want)
		}
	}
}

// TestAnyPieceIsFound cuts 15 bytes out of each place of a secret.
func TestAnyPieceIsFound(t *testing.T) {
	for kind, canary := range canaries() {
		s := NewScanner(New(canary))
		body := string(withoutHeader([]byte(canary)))
		for i := 0; i+15 <= len(body); i++ {
			if _, ok := s.Find([]byte("<" + body[i:i+15] + ">")); !ok {
				t.Errorf("%s: the piece at %d was not found", kind, i)
			}
		}
	}
}

func TestZeroScannerFindsNothing(t *testing.T) {
	for _, s := range []*Scanner{nil, {}, NewScanner()} {
		if _, ok := s.Find([]byte("x")); ok {
			t.Error("found")
		}
	}
}

// TestBombsAreBounded decodes what grows a thousandfold at each of its depths.
func TestBombsAreBounded(t *testing.T) {
	b := make([]byte, 8<<20)
	for range 3 {
		var out bytes.Buffer
		w := gzip.NewWriter(&out)
		_, _ = w.Write(bytes.Repeat(b[:min(len(b), 1<<20)], 8))
		_ = w.Close()
		b = out.Bytes()
	}
	if how, ok := NewScanner(New(canaries()["opaque"])).Find(bytes.Repeat(b, 4)); ok {
		t.Errorf("found %q", how)
	}
}

// FuzzFind hides a secret in junk: verbatim it is found whatever surrounds it,
// and without it, judged by bytes.Contains of its rarest piece, nothing is.
func FuzzFind(f *testing.F) {
	canary := canaries()["opaque"]
	s := NewScanner(New(canary))
	for _, e := range encodings() {
		f.Add([]byte(e.encode("no secret of anybody's at all, but some text")), uint16(3))
	}
	f.Add([]byte("\x1f\x8b\x08BZhPK\x03\x04\x78\x9c%zz\\u12&#;"), uint16(0))
	f.Fuzz(func(t *testing.T, junk []byte, at uint16) {
		if how, ok := s.Find(junk); ok {
			t.Fatalf("found %q in %q", how, junk)
		}
		i := int(at) % (len(junk) + 1)
		if _, ok := s.Find([]byte(string(junk[:i]) + canary + string(junk[i:]))); !ok {
			t.Fatalf("not found at %d of %q", i, junk)
		}
	})
}

func BenchmarkFind(b *testing.B) {
	var values []Value
	for _, c := range canaries() {
		values = append(values, New(c))
	}
	s := NewScanner(values...)
	text := bytes.Repeat([]byte(`{"type":"egress_denied","data":{"host":"evil.example.com","port":80}}`+"\n"), 4096)
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		if _, ok := s.Find(text); ok {
			b.Fatal("found")
		}
	}
}
