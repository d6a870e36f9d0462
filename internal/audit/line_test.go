package audit

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
)

// The parser that is quick knows the fields of Data by a table of its own.
func TestPlainLinesKnowEveryFieldOfData(t *testing.T) {
	of := func(f reflect.StructField) kind {
		switch f.Type.String() {
		case "string":
			return textKind
		case "uint16":
			return uint16Kind
		case "uint64":
			return uint64Kind
		case "int64":
			return int64Kind
		case "bool":
			return trueKind
		case "*int64", "*int":
			return anyIntKind
		case "*float64":
			return anyFloatKind
		case "audit.Unknown":
			return unknownKind
		}
		return 0
	}
	d := reflect.TypeFor[Data]()
	if d.NumField() != len(dataFields) {
		t.Fatalf("Data has %d fields, the table %d", d.NumField(), len(dataFields))
	}
	for i, want := range dataFields {
		f := d.Field(i)
		name, omit, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name != want.name || omit != map[bool]string{false: "omitempty", true: "omitzero"}[want.kind == unknownKind] || of(f) != want.kind {
			t.Errorf("field %d is %s of kind %d, the table says %s of kind %d", i, name, of(f), want.name, want.kind)
		}
	}
}

// full is an event with every field that a type may have.
func full() Event {
	i, n, f, g := 1, int64(0), 0.25, 12.000001
	return Seal(Event{}, Event{Session: "s-1", Time: clock(1), Type: SessionCreated, Data: Data{
		Caller: "a", Language: "b", RequestHash: "c", PolicyDigest: "d", Backend: "e", Isolation: "f", Image: "g", Modelled: true,
		Host: "h", Port: 65535, Protocol: "i", Reason: "j", Rule: "k", Binding: "l", Count: 1, Unknown: UnknownAttempts | UnknownBytes, Resource: "m", Limit: 2, Observed: 3,
		Evidence: "n", Source: "o", ResultBytes: &n, OutputBytes: &n, Truncated: true, Refused: 1, Repeated: 1, Outcome: "p", KillReason: "q", ExitCode: &i,
		CPUSeconds: &f, WallSeconds: &g, PeakMemoryBytes: &n, BytesIn: &n, BytesOut: &n,
	}})
}

func TestUsualLinesArePlain(t *testing.T) {
	for _, e := range append(whole("s-abcdef-17"), full()) {
		b, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		var l line
		if !l.plain(b) {
			t.Errorf("not plain: %s", b)
		}
	}
}

// What the quick parser takes, encoding/json takes too, writes again in the
// same bytes, and understands in the same way.
func FuzzPlainLine(f *testing.F) {
	for _, e := range append(whole("s-abcdef-17"), full()) {
		b, err := json.Marshal(e)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		for old, bad := range map[string]string{
			`"seq":1`: `"seq":01`, `"ts":"2026`: `"ts":"02026`, `"data":{`: `"data":{"port":0,`, `12.000001`: `12.0000010`,
			`0.25`: `0.0000000025`, `65535`: `65536`, `"count":1`: `"count":0`, `"caller":"a"`: `"caller":""`, `Z"`: `+00:00"`, `"exitCode":1`: `"exitCode":-0`,
		} {
			f.Add([]byte(strings.Replace(string(b), old, bad, 1)))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var l line
		if !l.plain(b) {
			return
		}
		var e Event
		if err := Strict(b, &e); err != nil {
			t.Fatalf("%q: %v", b, err)
		}
		again, err := json.Marshal(e)
		if err != nil || string(again) != string(b) {
			t.Fatalf("%q became %q, %v", b, again, err)
		}
		leaf, err := Leaf(e)
		if err != nil {
			t.Fatal(err)
		}
		got, _ := l.leaf(nil)
		c, err := canonical(e)
		if err != nil {
			t.Fatal(err)
		}
		sum, _ := l.digest([32]byte{1}, nil)
		if string(l.session) != e.Session || l.seq != e.Seq || l.typ != e.Type || got != leaf || sum != digest([32]byte{1}, c) || l.data != nil || e.Type == KeyRotated {
			t.Fatalf("%q was read as %+v, it is %+v", b, l, e)
		}
	})
}
