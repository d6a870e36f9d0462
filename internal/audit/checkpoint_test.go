package audit

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

func newSigner(t testing.TB, origin string) *Signer {
	t.Helper()
	private, public, err := GenerateKey(rand.Reader, origin)
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	if s.Public() != public || s.Origin() != origin {
		t.Fatalf("the signer is %s of %s, want %s of %s", s.Public(), s.Origin(), public, origin)
	}
	return s
}

func TestCheckpointRoundTrip(t *testing.T) {
	s := newSigner(t, "enclave.example.com/log")
	for _, n := range []int64{0, 1, 1 << 40} {
		want := tlog.Tree{N: n, Hash: tlog.RecordHash([]byte{byte(n)})}
		c, err := s.Checkpoint(want)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := OpenCheckpoint(c, s.Public()); err != nil || got != want {
			t.Errorf("opened %v, %v, want %v", got, err, want)
		}
		if got, err := ParseCheckpoint(c); err != nil || got != want {
			t.Errorf("parsed %v, %v, want %v", got, err, want)
		}
	}
}

// All bits, not some: the unused ones at the end of base64 are where a flip
// would hide from note.Open.
func TestEveryBitOfACheckpointCounts(t *testing.T) {
	s := newSigner(t, "enclave.example.com/log")
	c, err := s.Checkpoint(tlog.Tree{N: 1234567, Hash: tlog.RecordHash([]byte("x"))})
	if err != nil {
		t.Fatal(err)
	}
	for i := range len(c) * 8 {
		d := bytes.Clone(c)
		d[i/8] ^= 1 << (i % 8)
		if _, err := OpenCheckpoint(d, s.Public()); err == nil {
			t.Errorf("bit %d of byte %d (%q to %q) was flipped unnoticed", i%8, i/8, c[i/8], d[i/8])
		}
	}
}

func TestOpenCheckpointRefuses(t *testing.T) {
	s, other := newSigner(t, "log.example/a"), newSigner(t, "log.example/a")
	tree := tlog.Tree{N: 5, Hash: tlog.RecordHash([]byte("x"))}
	sign := func(text string, signers ...note.Signer) []byte {
		b, err := note.Sign(&note.Note{Text: text}, signers...)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	text := checkpointText("log.example/a", tree)
	good := sign(text, s.signer)
	if _, err := OpenCheckpoint(good, s.Public()); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string][]byte{
		"nothing":                        nil,
		"another key of that name":       sign(text, other.signer),
		"a second signature":             sign(text, s.signer, other.signer),
		"the same signature twice":       append(bytes.Clone(good), good[bytes.LastIndex(good, []byte("— ")):]...),
		"another origin":                 sign(checkpointText("log.example/b", tree), s.signer),
		"an extension line":              sign(text+"more\n", s.signer),
		"a size with a leading zero":     sign(strings.Replace(text, "\n5\n", "\n05\n", 1), s.signer),
		"a size with a sign":             sign(strings.Replace(text, "\n5\n", "\n+5\n", 1), s.signer),
		"a negative size":                sign(strings.Replace(text, "\n5\n", "\n-5\n", 1), s.signer),
		"a size that overflows":          sign(strings.Replace(text, "\n5\n", "\n9223372036854775808\n", 1), s.signer),
		"a short root":                   sign("log.example/a\n5\n"+base64.StdEncoding.EncodeToString(make([]byte, 31))+"\n", s.signer),
		"no root":                        sign("log.example/a\n5\n", s.signer),
		"a text that is not a statement": sign("hello\n", s.signer),
		"too long":                       append(bytes.Clone(good), make([]byte, maxCheckpoint)...),
	} {
		if tree, err := OpenCheckpoint(c, s.Public()); err == nil {
			t.Errorf("%s: opened as %v", name, tree)
		}
	}
	for _, key := range []string{"", "log.example/a", s.Public()[1:], s.Public() + "A", other.Public()} {
		if _, err := OpenCheckpoint(good, key); err == nil {
			t.Errorf("opened with the key %q", key)
		}
	}
}

func TestSignerPrintsNoKey(t *testing.T) {
	private, _, err := GenerateKey(rand.Reader, "log.example/a")
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	b64 := strings.TrimSpace(strings.SplitN(string(private), "+", 5)[4])
	raw, err := base64.StdEncoding.DecodeString(b64)
	if err != nil {
		t.Fatal(err)
	}
	seed := raw[1:]
	var out bytes.Buffer
	for _, v := range []any{s, *s, struct{ s *Signer }{s}, struct{ s Signer }{*s}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%c"} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
		slog.New(slog.NewTextHandler(&out, nil)).Info("x", "v", v)
		slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "v", v)
	}
	for _, form := range []string{b64, string(seed), fmt.Sprintf("%x", seed), fmt.Sprintf("%X", seed),
		strings.Trim(fmt.Sprint(seed[:8]), "[]"), fmt.Sprintf("%#x", seed[0:2])[:4] + ", " + fmt.Sprintf("%#x", seed[1:2])} {
		if strings.Contains(out.String(), form) {
			t.Errorf("the key was printed as %q", form)
		}
	}
	if out.Len() < 1000 {
		t.Errorf("only %d bytes were printed", out.Len())
	}
}

func TestNewSignerNeverQuotesTheKey(t *testing.T) {
	private, _, err := GenerateKey(rand.Reader, "log.example/a")
	if err != nil {
		t.Fatal(err)
	}
	for i := range len(private) - 1 {
		broken := bytes.Clone(private)
		broken[i] ^= 1
		_, err := NewSigner(broken)
		if err != nil && strings.Contains(err.Error(), string(broken[len(broken)-20:len(broken)-2])) {
			t.Fatalf("the error has the key: %v", err)
		}
	}
	for _, bad := range []string{"", "PRIVATE+KEY", "PRIVATE+KEY+a+00000000+AAAA", "a+b+c+d+e"} {
		if _, err := NewSigner([]byte(bad)); err == nil {
			t.Errorf("%q is a key", bad)
		}
	}
	for _, bad := range []string{"", "a b", "a+b", "a\nb", "ä", strings.Repeat("a", 256)} {
		if _, _, err := GenerateKey(rand.Reader, bad); err == nil {
			t.Errorf("%q is a log", bad)
		}
	}
}

func TestConsistency(t *testing.T) {
	s, other := newSigner(t, "log.example/a"), newSigner(t, "log.example/a")
	log, fork := newLog(t), newLog(t)
	for i := range 50 {
		log.add(tlog.RecordHash([]byte{byte(i)}))
		fork.add(tlog.RecordHash([]byte{byte(i), byte(i / 20)}))
	}
	at := func(l *memoryLog, n int64, s *Signer) []byte {
		c, err := s.Checkpoint(l.tree(n))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	prove := func(to, from int64) tlog.TreeProof {
		p, err := tlog.ProveTree(to, from, log)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	for from := int64(1); from <= 50; from++ {
		var p tlog.TreeProof
		if from < 50 {
			p = prove(50, from)
		}
		if err := VerifyConsistency(at(log, from, s), at(log, 50, s), p, s.Public()); err != nil {
			t.Errorf("from %d: %v", from, err)
		}
	}
	if err := VerifyConsistency(at(log, 0, s), at(log, 50, s), nil, s.Public()); err != nil {
		t.Errorf("from the empty log: %v", err)
	}
	for name, err := range map[string]error{
		"shrunk":                 VerifyConsistency(at(log, 50, s), at(log, 30, s), prove(50, 30), s.Public()),
		"forked":                 VerifyConsistency(at(fork, 30, s), at(log, 50, s), prove(50, 30), s.Public()),
		"forked at one size":     VerifyConsistency(at(fork, 50, s), at(log, 50, s), nil, s.Public()),
		"no proof":               VerifyConsistency(at(log, 30, s), at(log, 50, s), nil, s.Public()),
		"the proof of another":   VerifyConsistency(at(log, 30, s), at(log, 50, s), prove(50, 31), s.Public()),
		"a proof of what is one": VerifyConsistency(at(log, 50, s), at(log, 50, s), prove(50, 30), s.Public()),
		"older by another":       VerifyConsistency(at(log, 30, other), at(log, 50, s), prove(50, 30), s.Public()),
		"newer by another":       VerifyConsistency(at(log, 30, s), at(log, 50, other), prove(50, 30), s.Public()),
	} {
		if err == nil {
			t.Errorf("%s: not noticed", name)
		}
	}
}
