package wire

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

func frame(kind EventKind, payload string) string {
	return string(binary.BigEndian.AppendUint32([]byte{byte(kind)}, uint32(len(payload)))) + payload
}

var (
	start = frame(Started, "\x00\x00\x00\x01\x00\x00\x00\x02")
	exit  = frame(Exited, "\x00\x00\x00\x00\x00\x00\x00\x00")
)

func readEvents(stream string) (events []Event, err error) {
	r := eventReader{r: strings.NewReader(stream)}
	for {
		e, err := r.next()
		if err != nil {
			return events, err
		}
		events = append(events, e)
	}
}

func TestEventsSurviveTheStream(t *testing.T) {
	want := []Event{
		{Kind: Started, ID: 1, PID: 1<<32 - 1},
		{Kind: Stdout, Data: []byte("out")},
		{Kind: Stderr, Data: bytes.Repeat([]byte("e"), MaxChunk)},
		{Kind: Terminal, Data: []byte{0}},
		{Kind: Dropped, Bytes: 1 << 40},
		{Kind: Result, Data: []byte(`"` + strings.Repeat("x", MaxResult-2) + `"`)},
		{Kind: Exited, Code: 137, Signal: 9},
	}
	var b []byte
	for _, e := range want {
		b = AppendEvent(b, e)
	}
	got, err := readEvents(string(b))
	if diff := cmp.Diff(want, got, cmp.Comparer(bytes.Equal)); diff != "" || err != io.EOF {
		t.Error(diff, err)
	}
}

func TestEventsOutOfRuleAreRefused(t *testing.T) {
	for name, stream := range map[string]string{
		"output before the start":     frame(Stdout, "x"),
		"two starts":                  start + start,
		"two results":                 start + frame(Result, "1") + frame(Result, "2"),
		"something after the exit":    start + exit + frame(Stdout, "x"),
		"two exits":                   start + exit + exit,
		"a kind of 0":                 start + frame(0, "x"),
		"an unknown kind":             start + frame(99, "x"),
		"empty output":                start + frame(Stdout, ""),
		"too much output":             start + frame(Stdout, strings.Repeat("x", MaxChunk+1)),
		"a huge length":               start + "\x02\xff\xff\xff\xff",
		"a huge result":               start + "\x05\x00\x10\x00\x01",
		"a result that is no JSON":    start + frame(Result, "{"),
		"a result of two values":      start + frame(Result, "1 2"),
		"a result with NaN":           start + frame(Result, "NaN"),
		"a result that is not a text": start + frame(Result, "\"\xff\""),
		"a deep result":               start + frame(Result, strings.Repeat("[", MaxDepth+1)+strings.Repeat("]", MaxDepth+1)),
		"a short exit":                start + frame(Exited, "\x00"),
		"an exit code of 256":         start + frame(Exited, "\x00\x00\x01\x00\x00\x00\x00\x00"),
		"a signal without its code":   start + frame(Exited, "\x00\x00\x00\x00\x00\x00\x00\x09"),
		"endless notices":             start + strings.Repeat(frame(Dropped, "\x00\x00\x00\x00\x00\x00\x00\x01"), maxNotices+1),
	} {
		if _, err := readEvents(stream); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, stream := range map[string]string{
		"nothing": "", "no exit": start, "half a header": start + "\x02\x00", "half a payload": start + "\x02\x00\x00\x00\x05ab",
	} {
		if _, err := readEvents(stream); err != io.ErrUnexpectedEOF {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A length is checked before memory is taken for it.
func TestHugeLengthsTakeNoMemory(t *testing.T) {
	for _, kind := range []EventKind{Stdout, Stderr, Terminal, Result, Started, Exited, Dropped, 77} {
		r := eventReader{r: strings.NewReader(string(rune(kind)) + "\xff\xff\xff\xff"), seen: kind != Started}
		if n := testing.AllocsPerRun(1, func() { _, _ = r.next() }); n > 10 {
			t.Errorf("kind %d: %v allocations", kind, n)
		}
	}
}

func FuzzEvents(f *testing.F) {
	f.Add([]byte(start + frame(Stdout, "x") + frame(Result, `{"a":[1]}`) + exit))
	f.Add([]byte(start + frame(Stderr, "x") + frame(Dropped, "12345678") + exit + "x"))
	f.Add([]byte(start + frame(Exited, "\x00\x00\x00\x89\x00\x00\x00\x09")))
	f.Add([]byte(frame(Stdout, "")))
	f.Add([]byte(start + frame(Result, "NaN")))
	f.Fuzz(func(t *testing.T, b []byte) {
		events, err := readEvents(string(b))
		// What was read is what the bytes say: encoded again it is a prefix.
		var again []byte
		results := 0
		for i, e := range events {
			again = AppendEvent(again, e)
			if (e.Kind == Started) != (i == 0) || (e.Kind == Exited && i != len(events)-1) {
				t.Fatalf("event %d of %d is of kind %d", i, len(events), e.Kind)
			}
			if len(e.Data) > 1<<20 || (e.Kind != Result && len(e.Data) > 1<<16) {
				t.Fatalf("%d bytes of kind %d", len(e.Data), e.Kind)
			}
			if e.Kind == Result {
				results++
				var v any
				if !utf8.Valid(e.Data) || json.Unmarshal(e.Data, &v) != nil {
					t.Fatalf("result %q", e.Data)
				}
			}
		}
		if !bytes.HasPrefix(b, again) || results > 1 {
			t.Fatalf("%q read as %q, %d results", b, again, results)
		}
		complete := len(events) > 0 && events[len(events)-1].Kind == Exited
		switch {
		case err == io.EOF:
			if !complete || len(again) != len(b) {
				t.Fatalf("%q is complete", b)
			}
		case err == io.ErrUnexpectedEOF, errors.Is(err, ErrProtocol):
		default:
			t.Fatal(err)
		}
	})
}

// nesting is how deep b, which is valid JSON, is nested, by its tokens.
func nesting(t *testing.T, b []byte) (deepest int) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(b))
	for depth := 0; ; {
		token, err := d.Token()
		if err == io.EOF {
			return deepest
		}
		if err != nil {
			t.Fatal(err)
		}
		switch token {
		case json.Delim('['), json.Delim('{'):
			depth++
			deepest = max(deepest, depth)
		case json.Delim(']'), json.Delim('}'):
			depth--
		}
	}
}

func FuzzResult(f *testing.F) {
	for _, s := range []string{`{"a":["\"[",{"b":null}]}`, `[]`, `""`, `"\\"`, `"\\\"[[["`, `"\"` + strings.Repeat("[", 300) + `"`, "NaN", "1 2", "", " 1 ", "\"\xff\"",
		strings.Repeat("[", 256) + strings.Repeat("]", 256), strings.Repeat("[", 257) + strings.Repeat("]", 257)} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		err := CheckResult(b)
		d := json.NewDecoder(bytes.NewReader(b))
		d.UseNumber()
		var v any
		valid := utf8.Valid(b) && d.Decode(&v) == nil
		if valid {
			_, more := d.Token()
			valid = more == io.EOF
		}
		deep := valid && nesting(t, b) > 256
		strict, unsure := valid && !deep, false
		if strict {
			strict, unsure = oneReading(t, b)
		}
		if want := strict; !unsure && (err == nil) != want || errors.Is(err, ErrResultTooDeep) && valid && !deep {
			t.Fatalf("%q: %v, want %v", b, err, want)
		}
	})
}

// oneReading reports whether the valid JSON b has no member twice and no number
// that is none of a double's. It is unsure of the character that encoding/json
// puts for half of a surrogate pair.
func oneReading(t *testing.T, b []byte) (one, unsure bool) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	one = true
	var walk func() any
	walk = func() any {
		tok, err := d.Token()
		if err != nil {
			t.Fatal(err)
		}
		switch v := tok.(type) {
		case json.Delim:
			names := map[string]int{}
			for d.More() {
				if v == '{' {
					name := walk().(string)
					if names[name]++; names[name] > 1 {
						one = false
					}
				}
				walk()
			}
			if _, err := d.Token(); err != nil {
				t.Fatal(err)
			}
		case json.Number:
			if _, err := v.Float64(); err != nil || len(v) > 400 {
				one = false
			}
		case string:
			unsure = unsure || strings.ContainsRune(v, utf8.RuneError)
		}
		return tok
	}
	walk()
	return one, unsure
}

// A result that two readers could read in two ways is none.
func TestResultsAreAsStrictAsRequests(t *testing.T) {
	for given, want := range map[string]error{
		`{"a":{"b":1},"b":{"b":1}}`: nil, `[1e308,-0,0.5e-9999,` + strings.Repeat("9", 308) + `]`: nil,
		`"\ud83d\ude00\u0000"`: nil, ` {"\u0061":1,"b":2} `: nil, `"\ufffd"`: nil,
		`[` + strings.Repeat("7", 5001) + `]`: ErrResultNotJSON, `0.` + strings.Repeat("1", 400): ErrResultNotJSON,
		`1e999`: ErrResultNotJSON, `[-1e309]`: ErrResultNotJSON,
		`"\ud800"`: ErrResultNotJSON, `"\udc00\ud800"`: ErrResultNotJSON, `["\ud83dx"]`: ErrResultNotJSON,
		`{"a":1,"a":1}`: ErrResultNotJSON, `[{"a":1,"\u0061":2}]`: ErrResultNotJSON, `{"":0,"":0}`: ErrResultNotJSON,
		`{"a":1,}`: ErrResultNotJSON, `[1,]`: ErrResultNotJSON, `01`: ErrResultNotJSON, `+1`: ErrResultNotJSON, `1.`: ErrResultNotJSON,
		`Infinity`: ErrResultNotJSON, `nul`: ErrResultNotJSON, `truefalse`: ErrResultNotJSON, "\xef\xbb\xbf1": ErrResultNotJSON,
		strings.Repeat("[", 256) + strings.Repeat("]", 256):           nil,
		strings.Repeat(`{"a":`, 257) + "1" + strings.Repeat("}", 257): ErrResultTooDeep,
		`"` + strings.Repeat("x", MaxResult) + `"`:                    ErrResultTooLarge,
	} {
		if err := CheckResult([]byte(given)); !errors.Is(err, want) || (want == nil) != (err == nil) {
			t.Errorf("%.80q: %v, want %v", given, err, want)
		}
	}
}
