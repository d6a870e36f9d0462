package audit

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// anExport is a log in memory and its exported form.
type anExport struct {
	t      testing.TB
	log    *memoryLog
	signer *Signer
	last   map[string]Event
	lines  [][]byte
	notes  []byte // a checkpoint file
}

func newExport(t testing.TB) *anExport {
	return &anExport{t: t, log: newLog(t), signer: newSigner(t, "log.example/a"), last: map[string]Event{}}
}

func (x *anExport) add(session string, typ Type, d Data) Event {
	e := Seal(x.last[session], Event{Session: session, Time: clock(int(x.log.n)), Type: typ, Data: d})
	x.put(e)
	return e
}

func (x *anExport) put(e Event) int64 {
	x.last[e.Session] = e
	h, err := Leaf(e)
	if err != nil {
		x.t.Fatal(err)
	}
	line, err := LogLine(e)
	if err != nil {
		x.t.Fatal(err)
	}
	x.lines = append(x.lines, line)
	return x.log.add(h)
}

// rotate has another key sign from here on.
func (x *anExport) rotate() Rotation {
	next := newSigner(x.t, x.signer.Origin())
	d, err := x.signer.Rotate(next)
	if err != nil {
		x.t.Fatal(err)
	}
	x.signer = next
	e := x.add(LogRecord, KeyRotated, d)
	return Rotation{e, LeafAt{Index: x.log.n - 1}}
}

// publish adds a checkpoint to the checkpoint file.
func (x *anExport) publish() []byte {
	c, err := x.signer.Checkpoint(x.log.tree(x.log.n))
	if err != nil {
		x.t.Fatal(err)
	}
	x.notes = append(x.notes, PublishedRecord(c)...)
	return c
}

func (x *anExport) bytes() []byte {
	end, err := LogEnd(x.publish())
	if err != nil {
		x.t.Fatal(err)
	}
	return append(bytes.Join(x.lines, nil), end...)
}

// run adds n sessions whose events lie among each other.
func (x *anExport) run(prefix string, n int) {
	for _, e := range whole("") {
		for i := range n {
			x.add(fmt.Sprintf("%s-%d", prefix, i), e.Type, e.Data)
		}
		x.publish()
	}
}

func TestExportedLogVerifies(t *testing.T) {
	x := newExport(t)
	first := x.signer.Public()
	x.publish()
	x.run("s-aaaaaa", 5)
	x.rotate()
	x.add("s-bbbbbb-1", SessionCreated, Data{Caller: "größer & <kleiner>"})
	x.rotate()
	data := x.bytes()
	for name, key := range map[string]string{"the first key": first, "the newest key": x.signer.Public()} {
		told := int64(0)
		r, err := VerifyLog(bytes.NewReader(data), key, LogOptions{
			Progress: func(n, _ int64) { told = n }, Checkpoints: bytes.NewReader(x.notes),
		})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		want := LogReport{Origin: "log.example/a", Key: x.signer.Public(), Log: x.log.tree(x.log.n), Bytes: int64(len(data)), Sessions: 6, Open: 1, Rotations: 2, Checkpoints: 11}
		if r != want || told != x.log.n {
			t.Errorf("%s: %+v, told of %d; want %+v", name, r, told, want)
		}
	}
	if _, err := VerifyLog(bytes.NewReader(data), newSigner(t, "log.example/a").Public(), LogOptions{}); err == nil {
		t.Error("verified with a key that is not the log's")
	}
	empty := newExport(t)
	if r, err := VerifyLog(bytes.NewReader(empty.bytes()), empty.signer.Public(), LogOptions{Checkpoints: bytes.NewReader(empty.notes)}); err != nil || r.Checkpoints != 1 {
		t.Errorf("an empty log: %+v, %v", r, err)
	}
}

// A log that is larger than what is checked at a time gives the same as one
// that is not, wherever it is cut into parts.
func TestLogOfManyPartsVerifies(t *testing.T) {
	x := newExport(t)
	x.run("s-aaaaaa", 900)
	data := x.bytes()
	if len(data) < 2*chunkSize {
		t.Fatalf("only %d bytes", len(data))
	}
	r, err := VerifyLog(bytes.NewReader(data), x.signer.Public(), LogOptions{Checkpoints: bytes.NewReader(x.notes)})
	if err != nil || r.Sessions != 900 || r.Open != 0 || r.Log.N != 8100 {
		t.Fatalf("%+v, %v", r, err)
	}
	middle := len(x.lines) / 2
	x.lines = slices.Delete(x.lines, middle, middle+1)
	if _, err := VerifyLog(bytes.NewReader(x.bytes()), x.signer.Public(), LogOptions{}); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("line %d:", middle+900)) {
		t.Errorf("without line %d: %v", middle+1, err)
	}
}

func TestTenThousandBitFlipsOfALogAreFound(t *testing.T) {
	x := newExport(t)
	x.run("s-aaaaaa", 2)
	x.rotate()
	x.run("s-bbbbbb", 1)
	data, key := x.bytes(), x.signer.Public()
	flipAll(t, data, func(d []byte) error {
		_, err := VerifyLog(bytes.NewReader(d), key, LogOptions{})
		return err
	})
}

// flipAll flips ten thousand single bits of data, each of which verify must
// find.
func flipAll(t *testing.T, data []byte, verify func([]byte) error) {
	t.Helper()
	if err := verify(data); err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(3, 4))
	missed := 0
	for range 10_000 {
		d := bytes.Clone(data)
		i, bit := rnd.IntN(len(d)), rnd.IntN(8)
		d[i] ^= 1 << bit
		if err := verify(d); err == nil {
			missed++
			t.Errorf("bit %d of byte %d, in %q, was flipped unnoticed", bit, i, data[max(0, i-20):min(len(data), i+20)])
		}
	}
	t.Logf("%d of 10000 flips in %d bytes missed", missed, len(data))
}

func TestEveryCutOfALogIsFound(t *testing.T) {
	x := newExport(t)
	x.run("s-aaaaaa", 1)
	data := x.bytes()
	for n := range data {
		if _, err := VerifyLog(bytes.NewReader(data[:n]), x.signer.Public(), LogOptions{}); err == nil {
			t.Errorf("a log of %d of %d bytes verifies", n, len(data))
		}
	}
	for _, more := range []string{"\n", "x", " ", "\x00", string(x.lines[0]), string(data)} {
		if _, err := VerifyLog(strings.NewReader(string(data)+more), x.signer.Public(), LogOptions{}); err == nil {
			t.Errorf("a log with %.20q behind it verifies", more)
		}
	}
}

// Whoever changed the log also numbered, chained and hashed it anew, but has
// not the key.
func TestTamperedLogIsFound(t *testing.T) {
	seal := func(x *anExport, change func(all []Event) []Event) []byte {
		end := x.lines[len(x.lines)-1]
		events := make([]Event, 0, len(x.lines))
		for _, l := range x.lines[:len(x.lines)-1] {
			var e Event
			if err := Strict(l, &e); err != nil {
				x.t.Fatal(err)
			}
			events = append(events, e)
		}
		last := map[string]Event{}
		var out []byte
		for _, e := range change(events) {
			e = Seal(last[e.Session], e)
			last[e.Session] = e
			l, err := LogLine(e)
			if err != nil {
				x.t.Fatal(err)
			}
			out = append(out, l...)
		}
		return append(out, end...)
	}
	for name, change := range map[string]func(all []Event) []Event{
		"an event was edited":          func(all []Event) []Event { all[7].Data.Host = "harmless"; return all },
		"an event was deleted":         func(all []Event) []Event { return slices.Delete(all, 9, 10) },
		"the tail was cut off":         func(all []Event) []Event { return all[:len(all)-2] },
		"the beginning was cut off":    func(all []Event) []Event { return all[2:] },
		"an event was inserted":        func(all []Event) []Event { return slices.Insert(all, 6, all[6]) },
		"a whole session was inserted": func(all []Event) []Event { return append(all, whole("s-cccccc-1")...) },
		"two sessions' lines swapped":  func(all []Event) []Event { all[4], all[5] = all[5], all[4]; return all },
		"two events of a session swapped": func(all []Event) []Event {
			all[4].Data, all[6].Data = all[6].Data, all[4].Data
			all[4].Type, all[6].Type = all[6].Type, all[4].Type
			return all
		},
		"a rotation was inserted": func(all []Event) []Event {
			mine, _ := newSigner(t, "log.example/a").Rotate(newSigner(t, "log.example/a"))
			return append(all, Event{Session: LogRecord, Time: clock(99), Type: KeyRotated, Data: mine})
		},
	} {
		x := newExport(t)
		x.run("s-aaaaaa", 2)
		x.lines = bytes.SplitAfter(bytes.TrimSuffix(x.bytes(), []byte("\n")), []byte("\n"))
		if _, err := VerifyLog(bytes.NewReader(append(seal(x, func(all []Event) []Event { return all }), '\n')), x.signer.Public(), LogOptions{}); err != nil {
			t.Fatalf("unchanged: %v", err)
		}
		if _, err := VerifyLog(bytes.NewReader(append(seal(x, change), '\n')), x.signer.Public(), LogOptions{}); err == nil {
			t.Errorf("%s: not noticed", name)
		} else {
			t.Logf("%s: %v", name, err)
		}
	}
}

// Who has the key too can sign anything. What he signs must still be a log; that
// it is another one only a checkpoint that was kept tells.
func TestWhoHasTheKeyIsFoundByAKeptCheckpoint(t *testing.T) {
	for name, c := range map[string]struct {
		forge func(x *anExport)
		alone bool // found without the checkpoint file
	}{
		"rewritten":       {func(x *anExport) { x.run("s-bbbbbb", 2) }, false},
		"shorter":         {func(x *anExport) { x.add("s-aaaaaa-0", SessionCreated, Data{}) }, false},
		"without grammar": {func(x *anExport) { x.add("s-aaaaaa-0", UsageMetered, Data{}) }, true},
		"a session twice": {func(x *anExport) {
			x.run("s-bbbbbb", 1)
			x.last = map[string]Event{}
			x.run("s-bbbbbb", 1)
		}, true},
	} {
		x := newExport(t)
		x.run("s-aaaaaa", 2)
		forged := newExport(t)
		forged.signer = x.signer
		c.forge(forged)
		data := forged.bytes()
		if _, err := VerifyLog(bytes.NewReader(data), x.signer.Public(), LogOptions{}); (err != nil) != c.alone {
			t.Errorf("%s: alone: %v", name, err)
		}
		if _, err := VerifyLog(bytes.NewReader(data), x.signer.Public(), LogOptions{Checkpoints: bytes.NewReader(x.notes)}); err == nil {
			t.Errorf("%s: not found by the checkpoint file", name)
		} else {
			t.Logf("%s: %v", name, err)
		}
	}
}

func TestLogRefusesWhatIsNoLog(t *testing.T) {
	s := newSigner(t, "log.example/a")
	for name, data := range map[string]string{
		"nothing":      "",
		"a new line":   "\n",
		"other words":  "hello\n",
		"a long line":  `{"session":"` + strings.Repeat("x", chunkSize+maxLine) + "\n",
		"deep nesting": strings.Repeat("[", 1<<20) + "\n",
		"a bundle":     string(encode(t, newLog(t).bundle(s, whole("s-1"), "succeeded", 0))),
		"only an end":  `{"checkpoint":""}` + "\n",
	} {
		if _, err := VerifyLog(strings.NewReader(data), s.Public(), LogOptions{}); err == nil {
			t.Errorf("%s: verified", name)
		}
	}
}

func TestCheckpointFile(t *testing.T) {
	x := newExport(t)
	one := x.publish()
	x.run("s-aaaaaa", 1)
	two := x.publish()
	other := newExport(t)
	other.run("s-bbbbbb", 1)
	fork := other.publish()
	rec := func(notes ...[]byte) (out string) {
		for _, n := range notes {
			out += string(PublishedRecord(n))
		}
		return out
	}
	for name, c := range map[string]struct {
		file string
		want int // -1: an error
	}{
		"empty":                          {"", 0},
		"two":                            {rec(one, two), 2},
		"one again":                      {rec(one, two, two), 3},
		"a record being written":         {rec(one) + rec(two)[:100], 1},
		"a torn record":                  {rec(one) + rec(two)[:100] + string(MendPublished([]byte(rec(two)[:100]))) + rec(two), 2},
		"torn in the end mark":           {rec(one) + rec(two)[:len(rec(two))-1] + tornEnd + rec(two), 3},
		"smaller":                        {rec(two, one), -1},
		"a fork":                         {rec(one, two, fork), -1},
		"garbage":                        {rec(one) + "x\n---\n", -1},
		"garbage without end":            {rec(one) + strings.Repeat("x\n", 2*maxCheckpoint), -1},
		"a line without end":             {rec(one) + strings.Repeat("x", 2*maxCheckpoint), -1},
		"an edited size":                 {strings.Replace(rec(two), "\n9\n", "\n09\n", 1), -1},
		"a torn mark that is not an end": {rec(one) + "--- torn\n" + rec(two), 2},
	} {
		n := 0
		var bad error
		for _, err := range Published(strings.NewReader(c.file)) {
			if err != nil {
				bad = err
				break
			}
			n++
		}
		if (bad != nil) != (c.want < 0) || bad == nil && n != c.want {
			t.Errorf("%s: %d records, %v; want %d", name, n, bad, c.want)
		}
	}
	for tail, want := range map[string]string{"": "", rec(one): "", rec(one) + "x" + tornEnd: "", rec(one)[:9]: tornEnd, rec(one)[:len(rec(one))-1]: tornEnd} {
		if got := MendPublished([]byte(tail)); string(got) != want {
			t.Errorf("%q is mended with %q", tail, got)
		}
	}
}

// bigLog is an exported log of n events in sessions of ten.
func bigLog(b *testing.B, n int) ([]byte, string) {
	x := newExport(b)
	var out bytes.Buffer
	var f frontier
	const live = 100 // sessions at once
	types := []Type{SessionCreated, SandboxStarted, EgressDenied, EgressDenied, EgressDenied, EgressAllowed, ResultCollected, WorkloadExited, UsageMetered, SessionTornDown}
	size, secs := int64(123), 0.034511
	data := map[Type]Data{
		SessionCreated:  {Caller: "ek_0011223344556677", Language: "python", RequestHash: strings.Repeat("ab", 32), PolicyDigest: strings.Repeat("cd", 32)},
		SandboxStarted:  {Backend: "gvisor", Isolation: "userspace_kernel", Image: "sha256:" + strings.Repeat("ef", 32)},
		EgressDenied:    {Host: "evil.example.com", Port: 443, Protocol: "tcp", Reason: "not_allowed", Count: 1},
		EgressAllowed:   {Host: "api.example.com", Port: 443, Protocol: "tcp", Reason: "allowed", Rule: "api.example.com", Count: 1},
		ResultCollected: {ResultBytes: &size, OutputBytes: &size},
		WorkloadExited:  {Outcome: "succeeded", ExitCode: new(int)},
		UsageMetered:    {CPUSeconds: &secs, WallSeconds: &secs, PeakMemoryBytes: &size, BytesIn: &size, BytesOut: &size, OutputBytes: &size},
		SessionTornDown: {Caller: "ek_0011223344556677"},
	}
	for first := 0; first*len(types) < n; first += live {
		var last [live]Event
		for _, typ := range types {
			for i := range live {
				e := Seal(last[i], Event{Session: fmt.Sprintf("s-0a1b2c-%d", first+i), Time: clock(0).Add(time.Duration(f.n) * 137 * time.Microsecond), Type: typ, Data: data[typ]})
				last[i] = e
				l, err := LogLine(e)
				if err != nil {
					b.Fatal(err)
				}
				out.Write(l)
				h, err := Leaf(e)
				if err != nil {
					b.Fatal(err)
				}
				f.add(h)
			}
		}
	}
	c, err := x.signer.Checkpoint(tlog.Tree{N: f.n, Hash: f.root()})
	if err != nil {
		b.Fatal(err)
	}
	end, err := LogEnd(c)
	if err != nil {
		b.Fatal(err)
	}
	out.Write(end)
	return out.Bytes(), x.signer.Public()
}

func BenchmarkVerifyLog(b *testing.B) {
	const n = 1_000_000
	data, key := bigLog(b, n)
	for b.Loop() {
		if r, err := VerifyLog(bytes.NewReader(data), key, LogOptions{}); err != nil || r.Log.N != n {
			b.Fatal(r, err)
		}
	}
	b.ReportMetric(float64(len(data))/1e6, "MB")
	b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "events/s")
}

// What is read of a checkpoint file stands in it, in order, and never shrinks;
// and whatever a crash left of it, the next record is found behind that.
func FuzzCheckpointFile(f *testing.F) {
	s := newSigner(f, "log.example/a")
	note := func(n int64) []byte {
		c, err := s.Checkpoint(tlog.Tree{N: n, Hash: tlog.RecordHash([]byte{byte(n)})})
		if err != nil {
			f.Fatal(err)
		}
		return c
	}
	one, two := PublishedRecord(note(1)), PublishedRecord(note(2))
	for _, b := range [][]byte{nil, one, append(bytes.Clone(one), two...), one[:50], append(bytes.Clone(one[:50]), tornEnd...), one[:len(one)-1], []byte(recordEnd), []byte(tornEnd)} {
		f.Add(b)
	}
	last := note(1 << 62)
	f.Fuzz(func(t *testing.T, b []byte) {
		rest, size := b, int64(0)
		for c, err := range Published(bytes.NewReader(b)) {
			if err != nil {
				return
			}
			at := bytes.Index(rest, append(bytes.Clone(c.Note), "---\n"...))
			if at < 0 || c.Tree.N < size {
				t.Fatalf("%q has no %q behind %d", b, c.Note, size)
			}
			rest, size = rest[at+len(c.Note):], c.Tree.N
			if again, err := ParseCheckpoint(c.Note); err != nil || again != c.Tree {
				t.Fatalf("%q: %v", c.Note, err)
			}
		}
		// A record that is cut off has a note before its end mark.
		if size > 1<<62 || len(b) > maxCheckpoint || bytes.HasSuffix(b, []byte("---")) {
			return
		}
		var got Checkpoint
		for c, err := range Published(bytes.NewReader(slices.Concat(b, MendPublished(b), PublishedRecord(last)))) {
			if err != nil {
				t.Fatalf("a record behind %q: %v", b, err)
			}
			got = c
		}
		if !bytes.Equal(got.Note, last) {
			t.Errorf("a record behind %q is not found", b)
		}
	})
}
