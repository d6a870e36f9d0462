package audit

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// A memoryLog is a global log in memory.
type memoryLog struct {
	t      testing.TB
	n      int64
	hashes []tlog.Hash
}

func newLog(t testing.TB) *memoryLog { return &memoryLog{t: t} }

func (l *memoryLog) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, at := range indexes {
		out[i] = l.hashes[at]
	}
	return out, nil
}

func (l *memoryLog) add(leaf tlog.Hash) int64 {
	h, err := tlog.StoredHashesForRecordHash(l.n, leaf, l)
	if err != nil {
		l.t.Fatal(err)
	}
	l.hashes = append(l.hashes, h...)
	l.n++
	return l.n - 1
}

func (l *memoryLog) tree(n int64) tlog.Tree {
	h, err := tlog.TreeHash(n, l)
	if err != nil {
		l.t.Fatal(err)
	}
	return tlog.Tree{N: n, Hash: h}
}

// bundle puts events in a log, with noise before each if asked, and bundles
// them.
func (l *memoryLog) bundle(s *Signer, events []Event, outcome string, noise int) Bundle {
	b := Bundle{Version: BundleVersion, Session: events[0].Session, Outcome: outcome, Events: events}
	for _, e := range events {
		for range noise {
			l.add(tlog.RecordHash([]byte("noise")))
		}
		h, err := Leaf(e)
		if err != nil {
			l.t.Fatal(err)
		}
		b.Leaves = append(b.Leaves, LeafAt{Index: l.add(h)})
	}
	l.prove(s, &b)
	return b
}

func (l *memoryLog) prove(s *Signer, b *Bundle) {
	c, err := s.Checkpoint(l.tree(l.n))
	if err != nil {
		l.t.Fatal(err)
	}
	b.Checkpoint = string(c)
	for i := range b.Leaves {
		if b.Leaves[i].Proof, err = tlog.ProveRecord(l.n, b.Leaves[i].Index, l); err != nil {
			l.t.Fatal(err)
		}
	}
}

func encode(t testing.TB, b Bundle) []byte {
	t.Helper()
	data, err := b.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func check(data []byte, public string) (Report, error) {
	b, err := ParseBundle(data)
	if err != nil {
		return Report{}, err
	}
	return VerifyBundle(b, public)
}

func TestBundleVerifies(t *testing.T) {
	s := newSigner(t, "log.example/a")
	for noise := range 5 {
		b := newLog(t).bundle(s, whole("s-1"), "succeeded", noise)
		data := encode(t, b)
		again, err := ReadBundle(bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(b, again); d != "" {
			t.Fatal(d)
		}
		r, err := VerifyBundle(again, s.Public())
		if err != nil {
			t.Fatal(err)
		}
		if !r.Complete || r.Events != 9 || r.Outcome != "succeeded" || r.Session != "s-1" || r.Origin != "log.example/a" || r.Log.N != int64(9*(noise+1)) {
			t.Errorf("report %+v", r)
		}
	}
	one := newLog(t).bundle(s, chain("s-1", SessionCreated), "", 0)
	if r, err := check(encode(t, one), s.Public()); err != nil || r.Complete {
		t.Errorf("a log of one event: %+v, %v", r, err)
	}
}

func TestTenThousandBitFlipsAreFound(t *testing.T) {
	s := newSigner(t, "log.example/a")
	data := encode(t, newLog(t).bundle(s, whole("s-1"), "succeeded", 3))
	flipAll(t, data, func(d []byte) error { _, err := check(d, s.Public()); return err })
}

func TestEveryCutIsFound(t *testing.T) {
	s := newSigner(t, "log.example/a")
	data := encode(t, newLog(t).bundle(s, whole("s-1"), "succeeded", 1))
	for n := range data {
		if _, err := check(data[:n], s.Public()); err == nil {
			t.Errorf("a file of %d of %d bytes verifies", n, len(data))
		}
	}
	if _, err := check(append(bytes.Clone(data), '\n'), s.Public()); err == nil {
		t.Error("a file with one more byte verifies")
	}
}

func TestVerifyBundleRefuses(t *testing.T) {
	s := newSigner(t, "log.example/a")
	other := newLog(t).bundle(s, whole("s-2"), "succeeded", 0)
	for name, change := range map[string]func(l *memoryLog, b *Bundle){
		"no events":                    func(l *memoryLog, b *Bundle) { b.Events, b.Leaves = nil, nil },
		"the zero bundle":              func(l *memoryLog, b *Bundle) { *b = Bundle{} },
		"another version":              func(l *memoryLog, b *Bundle) { b.Version = 2 },
		"another session's name":       func(l *memoryLog, b *Bundle) { b.Session = "s-2" },
		"another session's events":     func(l *memoryLog, b *Bundle) { b.Events = other.Events },
		"another log's checkpoint":     func(l *memoryLog, b *Bundle) { b.Checkpoint = other.Checkpoint },
		"a leaf is missing":            func(l *memoryLog, b *Bundle) { b.Leaves = b.Leaves[:8] },
		"a leaf too many":              func(l *memoryLog, b *Bundle) { b.Leaves = append(b.Leaves, b.Leaves[8]) },
		"a leaf elsewhere":             func(l *memoryLog, b *Bundle) { b.Leaves[3].Index++ },
		"a leaf before the log":        func(l *memoryLog, b *Bundle) { b.Leaves[0].Index = -1 },
		"a leaf after the log":         func(l *memoryLog, b *Bundle) { b.Leaves[8].Index = l.n },
		"the proof of another leaf":    func(l *memoryLog, b *Bundle) { b.Leaves[3].Proof = b.Leaves[4].Proof },
		"a longer proof":               func(l *memoryLog, b *Bundle) { b.Leaves[3].Proof = append(b.Leaves[3].Proof, tlog.Hash{}) },
		"no proof":                     func(l *memoryLog, b *Bundle) { b.Leaves[3].Proof = nil },
		"another outcome":              func(l *memoryLog, b *Bundle) { b.Outcome = "failed" },
		"the outcome without its line": func(l *memoryLog, b *Bundle) { b.Events, b.Leaves = b.Events[:4], b.Leaves[:4] },
		"an event that was never logged": func(l *memoryLog, b *Bundle) {
			b.Events[8] = Seal(b.Events[7], Event{Session: "s-1", Time: clock(9), Type: SessionTornDown, Data: Data{Caller: "x"}})
		},
		"a record that was rewritten and resealed": func(l *memoryLog, b *Bundle) {
			b.Events[2].Data.Host = "harmless.example.com"
			for i := 2; i < len(b.Events); i++ {
				b.Events[i] = Seal(b.Events[i-1], b.Events[i])
			}
		},
		"events out of order, sealed and logged so": func(l *memoryLog, b *Bundle) {
			*b = l.bundle(s, chain("s-1", SessionCreated, SandboxStarted, ResultCollected, UsageMetered, WorkloadExited), "", 1)
		},
		"egress after the end, sealed and logged so": func(l *memoryLog, b *Bundle) {
			*b = l.bundle(s, append(whole("s-1"), Seal(b.Events[8], Event{Session: "s-1", Time: clock(9), Type: EgressAllowed})), "", 1)
		},
		"logged in another order": func(l *memoryLog, b *Bundle) {
			events := whole("s-1")
			swapped := slices.Clone(events)
			slices.Reverse(swapped)
			*b = l.bundle(s, swapped, "succeeded", 1)
			slices.Reverse(b.Leaves)
			b.Events = events
		},
	} {
		l := newLog(t)
		b := l.bundle(s, whole("s-1"), "succeeded", 1)
		if _, err := VerifyBundle(b, s.Public()); err != nil {
			t.Fatal(err)
		}
		change(l, &b)
		if r, err := VerifyBundle(b, s.Public()); err == nil {
			t.Errorf("%s: verified as %+v", name, r)
		} else {
			t.Logf("%s: %v", name, err)
		}
	}
	b := newLog(t).bundle(s, whole("s-1"), "succeeded", 1)
	if _, err := VerifyBundle(b, newSigner(t, "log.example/a").Public()); err == nil {
		t.Error("verified with another log's key")
	}
}

func TestCutOffTailIsReported(t *testing.T) {
	s := newSigner(t, "log.example/a")
	for n := 1; n <= 9; n++ {
		b := newLog(t).bundle(s, whole("s-1"), "", 1)
		b.Events, b.Leaves = b.Events[:n], b.Leaves[:n]
		r, err := VerifyBundle(b, s.Public())
		if err != nil {
			t.Fatalf("the first %d: %v", n, err)
		}
		if want := n >= 8; r.Complete != want || r.Why == "" {
			t.Errorf("the first %d: complete is %v (%s), want %v", n, r.Complete, r.Why, want)
		}
	}
}

func TestParseBundleRefusesOtherSpellings(t *testing.T) {
	s := newSigner(t, "log.example/a")
	good := string(encode(t, newLog(t).bundle(s, whole("s-1"), "succeeded", 0)))
	if _, err := ParseBundle([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]string{
		"an unknown field":         strings.Replace(good, `{"version":1`, `{"version":1,"x":1`, 1),
		"an unknown event field":   strings.Replace(good, `"type":`, `"x":1,"type":`, 1),
		"an unknown data field":    strings.Replace(good, `"data":{}`, `"data":{"x":1}`, 1),
		"an unknown leaf field":    strings.Replace(good, `{"index":`, `{"x":1,"index":`, 1),
		"a field twice":            strings.Replace(good, `{"version":1`, `{"version":1,"version":1`, 1),
		"a leaf's field twice":     strings.Replace(good, `{"index":0`, `{"index":0,"index":0`, 1),
		"a field in another case":  strings.Replace(good, `"session"`, `"Session"`, 1),
		"fields in another order":  strings.Replace(good, `"version":1,"session":"s-1"`, `"session":"s-1","version":1`, 1),
		"an empty field":           strings.Replace(good, `"data":{}`, `"data":{"host":""}`, 1),
		"no field":                 strings.Replace(good, `"version":1,`, ``, 1),
		"a space":                  strings.Replace(good, `"version":1`, `"version": 1`, 1),
		"a space among events":     strings.Replace(good, `},{"session"`, `}, {"session"`, 1),
		"a space before":           " " + good,
		"no newline":               strings.TrimSuffix(good, "\n"),
		"two newlines":             good + "\n",
		"CR LF":                    strings.TrimSuffix(good, "\n") + "\r\n",
		"two bundles":              good + good,
		"another number":           strings.Replace(good, `"version":1`, `"version":1.0`, 1),
		"an escape":                strings.Replace(good, `"succeeded"`, `"\u0073ucceeded"`, 1),
		"null for no proof":        strings.Replace(good, `"proof":[`, `"proof":null,"proof":[`, 1),
		"null for events":          `{"version":1,"session":"","events":null,"checkpoint":"","leaves":[]}` + "\n",
		"null for a proof":         `{"version":1,"session":"","events":[],"checkpoint":"","leaves":[{"index":0,"proof":null}]}` + "\n",
		"a million small elements": `{"version":1,"session":"","events":[{}` + strings.Repeat(",{}", 1_000_000) + `],"checkpoint":"","leaves":[]}` + "\n",
		"deep nesting":             `{"version":1,"session":"","events":` + strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000) + `}`,
		"an array":                 "[]\n",
		"null":                     "null\n",
		"nothing":                  "",
	} {
		if bad == good {
			t.Fatalf("%s: the case changes nothing", name)
		}
		if _, err := ParseBundle([]byte(bad)); err == nil {
			t.Errorf("%s: parsed", name)
		}
	}
}

// FuzzVerifyBundle looks for a file that verifies and should not. The oracle
// knows nothing of the encoding: one session was ever signed, so what verifies
// has a beginning of that session's events, and the file spells fields, each
// once, in one order, without white space.
func FuzzVerifyBundle(f *testing.F) {
	s := fixedSigner(f)
	events := whole("s-1")
	for noise := range 3 {
		b := newLog(f).bundle(s, events, "succeeded", noise)
		f.Add(encode(f, b))
		b.Outcome, b.Events, b.Leaves = "", b.Events[:4], b.Leaves[:4]
		f.Add(encode(f, b))
	}
	_, r, _, _ := rotated(f)
	f.Add(encode(f, r))
	f.Add([]byte(`{"version":1,"session":"","events":[],"checkpoint":"","leaves":[{"index":0,"proof":[]}]}` + "\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := ParseBundle(data)
		if err != nil {
			return
		}
		var compact bytes.Buffer
		if err := json.Compact(&compact, data); err != nil || compact.String()+"\n" != string(data) {
			t.Fatalf("parsed what is not compact JSON and a newline: %q", data)
		}
		checkKeys(t, data)
		if _, err := VerifyBundle(b, s.Public()); err != nil {
			return
		}
		if len(b.Events) > len(events) || !reflect.DeepEqual(b.Events, events[:len(b.Events)]) {
			t.Fatalf("verified what was never signed: %+v", b.Events)
		}
	})
}

// fixedSigner has the same key in every process, as the inputs that a fuzzer
// keeps need it.
func fixedSigner(t testing.TB) *Signer {
	seed := bytes.Repeat([]byte{7}, ed25519.SeedSize)
	public := ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey)
	vkey, err := note.NewEd25519VerifierKey("log.example/a", public)
	if err != nil {
		t.Fatal(err)
	}
	hash := strings.Split(vkey, "+")[1]
	private := "PRIVATE+KEY+log.example/a+" + hash + "+" + base64.StdEncoding.EncodeToString(append([]byte{1}, seed...))
	s, err := NewSigner([]byte(private))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// checkKeys fails if an object in data has a key twice, or one that no object
// of a bundle has.
func checkKeys(t *testing.T, data []byte) {
	known := " version session outcome events checkpoint leaves index proof seq ts type data hash" +
		" caller language requestHash policyDigest backend isolation image modelled host port protocol reason rule binding" +
		" count resource limit observed evidence source resultBytes outputBytes truncated refused repeated killReason exitCode cpuSeconds" +
		" wallSeconds peakMemoryBytes bytesIn bytesOut rotations event oldKey newKey oldSignature newSignature "
	d := json.NewDecoder(bytes.NewReader(data))
	var walk func()
	walk = func() {
		tok, err := d.Token()
		if err != nil {
			t.Fatal(err)
		}
		switch tok {
		case json.Delim('{'):
			seen := map[string]bool{}
			for d.More() {
				k, err := d.Token()
				if err != nil {
					t.Fatal(err)
				}
				key := k.(string)
				if seen[key] || !strings.Contains(known, " "+key+" ") {
					t.Fatalf("parsed a bundle with the key %q, unknown or twice", key)
				}
				seen[key] = true
				walk()
			}
			d.Token()
		case json.Delim('['):
			for d.More() {
				walk()
			}
			d.Token()
		}
	}
	walk()
}

func BenchmarkVerifyBundle100k(b *testing.B) {
	types := []Type{SessionCreated, SandboxStarted}
	for len(types) < 100_000 {
		types = append(types, EgressDenied)
	}
	s := newSigner(b, "log.example/a")
	data := encode(b, newLog(b).bundle(s, chain("s-1", types...), "", 0))
	for b.Loop() {
		if _, err := check(data, s.Public()); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(len(data))/1e6, "MB")
	b.ReportMetric(float64(100_000*b.N)/b.Elapsed().Seconds(), "events/s")
}
