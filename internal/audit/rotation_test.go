package audit

import (
	"bytes"
	"slices"
	"testing"

	"golang.org/x/mod/sumdb/tlog"
)

// rotated is a bundle of a log whose key was rotated twice, and the key it began
// with.
func rotated(t testing.TB) (l *memoryLog, b Bundle, first, last *Signer) {
	x := newExport(t)
	first = x.signer
	x.run("s-aaaaaa", 2)
	rotations := []Rotation{x.rotate()}
	x.add("s-bbbbbb-1", SessionCreated, Data{})
	rotations = append(rotations, x.rotate())
	b = x.log.bundle(x.signer, whole("s-1"), "succeeded", 1)
	b.Rotations = rotations
	proveRotations(t, x.log, b.Rotations)
	return x.log, b, first, x.signer
}

func proveRotations(t testing.TB, l *memoryLog, rotations []Rotation) {
	for i := range rotations {
		p, err := tlog.ProveRecord(l.n, rotations[i].Leaf.Index, l)
		if err != nil {
			t.Fatal(err)
		}
		rotations[i].Leaf.Proof = p
	}
}

func TestBundleAfterARotationVerifiesForWhoPinnedAnOlderKey(t *testing.T) {
	_, b, first, last := rotated(t)
	data := encode(t, b)
	for _, key := range []string{first.Public(), b.Rotations[0].Event.Data.NewKey, last.Public()} {
		r, err := check(data, key)
		if err != nil || r.Key != last.Public() || !r.Complete {
			t.Errorf("%s: %+v, %v", key, r, err)
		}
	}
	if _, err := check(data, newSigner(t, "log.example/a").Public()); err == nil {
		t.Error("verified with a key of no part of the chain")
	}
}

func TestRotationsThatAreNotTheLogsAreRefused(t *testing.T) {
	other := func(s *Signer) (Data, *Signer) {
		next := newSigner(t, s.Origin())
		d, err := s.Rotate(next)
		if err != nil {
			t.Fatal(err)
		}
		return d, next
	}
	reseal := func(b *Bundle, i int, d Data) {
		prev := Event{}
		if i > 0 {
			prev = b.Rotations[i-1].Event
		}
		e := b.Rotations[i].Event
		e.Data = d
		b.Rotations[i].Event = Seal(prev, e)
	}
	for name, change := range map[string]func(l *memoryLog, b *Bundle, first, last *Signer){
		"no rotations":      func(_ *memoryLog, b *Bundle, _, _ *Signer) { b.Rotations = nil },
		"one is missing":    func(_ *memoryLog, b *Bundle, _, _ *Signer) { b.Rotations = b.Rotations[:1] },
		"the first is gone": func(_ *memoryLog, b *Bundle, _, _ *Signer) { b.Rotations = b.Rotations[1:] },
		"they are swapped":  func(_ *memoryLog, b *Bundle, _, _ *Signer) { slices.Reverse(b.Rotations) },
		"one twice":         func(_ *memoryLog, b *Bundle, _, _ *Signer) { b.Rotations = append(b.Rotations, b.Rotations[1]) },
		"another place":     func(_ *memoryLog, b *Bundle, _, _ *Signer) { b.Rotations[0].Leaf.Index++ },
		"no proof":          func(_ *memoryLog, b *Bundle, _, _ *Signer) { b.Rotations[0].Leaf.Proof = nil },
		"one that the log has not": func(_ *memoryLog, b *Bundle, first, _ *Signer) {
			d, next := other(first)
			b.Rotations = b.Rotations[:1]
			reseal(b, 0, d)
			tree, _ := ParseCheckpoint([]byte(b.Checkpoint))
			c, _ := next.Checkpoint(tree)
			b.Checkpoint = string(c)
		},
		"a checkpoint of the key before": func(_ *memoryLog, b *Bundle, first, _ *Signer) {
			tree, _ := ParseCheckpoint([]byte(b.Checkpoint))
			c, _ := first.Checkpoint(tree)
			b.Checkpoint = string(c)
		},
	} {
		l, b, first, last := rotated(t)
		change(l, &b, first, last)
		if _, err := VerifyBundle(b, first.Public()); err == nil {
			t.Errorf("%s: verified", name)
		} else {
			t.Logf("%s: %v", name, err)
		}
	}
}

// Whoever has the new key alone, or the old one alone, logs and signs what he
// likes. It does not make a rotation.
func TestRotationNeedsBothSignatures(t *testing.T) {
	old, next, mallory := newSigner(t, "log.example/a"), newSigner(t, "log.example/a"), newSigner(t, "log.example/a")
	good, err := old.Rotate(next)
	if err != nil {
		t.Fatal(err)
	}
	byMallory, err := mallory.Rotate(next)
	if err != nil {
		t.Fatal(err)
	}
	back, err := next.Rotate(old)
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := newSigner(t, "log.example/b")
	for name, change := range map[string]func(d *Data){
		"unchanged":                        nil,
		"no signatures":                    func(d *Data) { d.OldSignature, d.NewSignature = "", "" },
		"none by the old key":              func(d *Data) { d.OldSignature = "" },
		"none by the new key":              func(d *Data) { d.NewSignature = "" },
		"the old signature by another":     func(d *Data) { d.OldSignature = byMallory.OldSignature },
		"the old signature by the new key": func(d *Data) { d.OldSignature = d.NewSignature },
		"the new signature by the old key": func(d *Data) { d.NewSignature = d.OldSignature },
		"signatures of the way back":       func(d *Data) { d.OldSignature, d.NewSignature = back.NewSignature, back.OldSignature },
		"another new key":                  func(d *Data) { d.NewKey = mallory.Public() },
		"another old key":                  func(d *Data) { d.OldKey = mallory.Public() },
		"a key of another log":             func(d *Data) { d.NewKey = elsewhere.Public() },
		"a garbled key":                    func(d *Data) { d.NewKey = "x" },
		"no keys":                          func(d *Data) { d.OldKey, d.NewKey = "", "" },
		"another spelling of a signature":  func(d *Data) { d.OldSignature += "\n" },
		"another field":                    func(d *Data) { d.Host = "x" },
	} {
		d := good
		if change != nil {
			change(&d)
		}
		err := checkRotation(d)
		if (err == nil) != (change == nil) {
			t.Errorf("%s: %v", name, err)
		}
		// In a log that is otherwise in order, signed by the new key.
		x := newExport(t)
		x.run("s-aaaaaa", 1)
		x.signer = next
		x.add(LogRecord, KeyRotated, d)
		x.run("s-bbbbbb", 1)
		if _, err := VerifyLog(bytes.NewReader(x.bytes()), old.Public(), LogOptions{}); (err == nil) != (change == nil) {
			t.Errorf("%s: in a log: %v", name, err)
		}
		r := Rotation{x.last[LogRecord], LeafAt{Index: 9}}
		b := x.log.bundle(next, whole("s-1"), "succeeded", 0)
		b.Rotations = []Rotation{r}
		proveRotations(t, x.log, b.Rotations)
		if _, err := VerifyBundle(b, old.Public()); (err == nil) != (change == nil) {
			t.Errorf("%s: in a bundle: %v", name, err)
		}
	}
	for name, to := range map[string]*Signer{"none": nil, "itself": old, "of another log": elsewhere} {
		if _, err := old.Rotate(to); err == nil {
			t.Errorf("rotated to a key: %s", name)
		}
	}
}

func TestRotationIsInNoSessionsRecord(t *testing.T) {
	d, err := newSigner(t, "log.example/a").Rotate(newSigner(t, "log.example/a"))
	if err != nil {
		t.Fatal(err)
	}
	for name, events := range map[string][]Event{
		"in a session":              {{Session: "s-1", Type: SessionCreated}, {Session: "s-1", Type: KeyRotated, Data: d}},
		"first of a session":        {{Session: "s-1", Type: KeyRotated, Data: d}},
		"a session in the log's":    {{Session: LogRecord, Type: SessionCreated}},
		"a session after rotations": {{Session: LogRecord, Type: KeyRotated, Data: d}, {Session: LogRecord, Type: SessionCreated}},
	} {
		if err := CheckOrder(events); err == nil {
			t.Errorf("%s: in order", name)
		}
	}
	if err := CheckOrder([]Event{{Session: LogRecord, Type: KeyRotated}, {Session: LogRecord, Type: KeyRotated}}); err != nil {
		t.Error(err)
	}
}

// at returns the log's checkpoint of size, signed by s.
func (x *anExport) at(s *Signer, size int64) []byte {
	c, err := s.Checkpoint(x.log.tree(size))
	if err != nil {
		x.t.Fatal(err)
	}
	return c
}

func (x *anExport) prove(from, to int64) tlog.TreeProof {
	p, err := tlog.ProveTree(to, from, x.log)
	if err != nil {
		x.t.Fatal(err)
	}
	return p
}

func TestAdvance(t *testing.T) {
	x := newExport(t)
	first := x.signer
	x.run("s-aaaaaa", 1) // 0..8
	plain := x.at(first, 9)
	rotations := []Rotation{x.rotate()} // 9
	x.run("s-bbbbbb", 1)                // 10..18
	proveRotations(t, x.log, rotations)
	next, n := x.signer, x.log.n

	fork := newExport(t)
	fork.signer = first
	fork.run("s-cccccc", 3)
	for name, c := range map[string]struct {
		older     []byte
		key       string
		newer     []byte
		proof     tlog.TreeProof
		rotations []Rotation
		want      string // "" is an error
	}{
		"over the rotation":         {x.at(first, 5), first.Public(), x.at(next, n), x.prove(5, n), rotations, next.Public()},
		"to where it is":            {x.at(next, n), next.Public(), x.at(next, n), nil, rotations, next.Public()},
		"before the rotation":       {x.at(first, 5), first.Public(), plain, x.prove(5, 9), nil, first.Public()},
		"from the empty log":        {x.at(first, 0), first.Public(), x.at(next, n), nil, rotations, next.Public()},
		"without the rotation":      {x.at(first, 5), first.Public(), x.at(next, n), x.prove(5, n), nil, ""},
		"the old key signs after":   {x.at(first, 5), first.Public(), x.at(first, n), x.prove(5, n), rotations, ""},
		"the old key signed after":  {x.at(first, 12), first.Public(), x.at(next, n), x.prove(12, n), rotations, ""},
		"the new key signed before": {x.at(next, 5), next.Public(), x.at(next, n), x.prove(5, n), rotations, ""},
		"a shorter log":             {x.at(first, 9), first.Public(), x.at(first, 5), nil, nil, ""},
		"a fork":                    {x.at(first, 9), first.Public(), fork.at(first, 20), fork.prove(9, 20), nil, ""},
		"a fork of the same size":   {x.at(first, 9), first.Public(), fork.at(first, 9), nil, nil, ""},
		"another proof":             {x.at(first, 5), first.Public(), plain, x.prove(4, 9), nil, ""},
		"a proof of another log":    {x.at(first, 5), first.Public(), plain, fork.prove(5, 9), nil, ""},
		"no proof":                  {x.at(first, 5), first.Public(), plain, nil, nil, ""},
		"another's signature":       {x.at(first, 5), first.Public(), x.at(newSigner(t, "log.example/a"), 9), x.prove(5, 9), nil, ""},
	} {
		got, err := Advance(c.older, c.key, c.newer, c.proof, c.rotations)
		if (err == nil) != (c.want != "") || got != c.want {
			t.Errorf("%s: %q, %v; want %q", name, got, err, c.want)
		}
	}
}

func TestTenThousandBitFlipsOfARotatedBundleAreFound(t *testing.T) {
	_, b, first, _ := rotated(t)
	flipAll(t, encode(t, b), func(d []byte) error { _, err := check(d, first.Public()); return err })
}
