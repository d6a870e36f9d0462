package audit

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

// clock returns the time of the i'th event of a test.
func clock(i int) time.Time {
	return time.Date(2026, 11, 21, 12, 0, 0, 123456000, time.UTC).Add(time.Duration(i) * time.Millisecond)
}

// chain returns the sealed events of a session of the given types.
func chain(session string, types ...Type) []Event {
	var out []Event
	var prev Event
	for i, t := range types {
		e := Event{Session: session, Time: clock(i), Type: t}
		if t == WorkloadExited {
			code := 0
			e.Data.Outcome, e.Data.ExitCode = "succeeded", &code
		}
		if t == EgressDenied {
			e.Data = Data{Host: "evil.example.com", Port: 443, Protocol: "tcp", Reason: "not_allowed", Count: uint64(i)}
		}
		prev = Seal(prev, e)
		out = append(out, prev)
	}
	return out
}

func whole(session string) []Event {
	return chain(session, SessionCreated, SandboxStarted, EgressDenied, EgressAllowed, LimitExceeded,
		ResultCollected, WorkloadExited, UsageMetered, SessionTornDown)
}

// The bytes are written out here, so that the format can't change unnoticed:
// who wrote a verifier of his own relies on it.
func TestHashIsOfTheDocumentedBytes(t *testing.T) {
	code := 1
	one := Seal(Event{}, Event{Session: "s-abcdef-1", Time: clock(0), Type: SessionCreated, Data: Data{Caller: "a<b"}})
	two := Seal(one, Event{Session: "s-abcdef-1", Time: clock(1), Type: WorkloadExited, Data: Data{ExitCode: &code}})

	j1 := `{"session":"s-abcdef-1","seq":1,"ts":"2026-11-21T12:00:00.123456Z","type":"session_created","data":{"caller":"a\u003cb"},"hash":""}`
	j2 := `{"session":"s-abcdef-1","seq":2,"ts":"2026-11-21T12:00:00.124456Z","type":"workload_exited","data":{"exitCode":1},"hash":""}`
	h1 := sha256.Sum256([]byte("enclave audit event v1\n" + string(make([]byte, 32)) + "\x00\x00\x00\x00\x00\x00\x00" + string([]byte{byte(len(j1))}) + j1))
	h2 := sha256.Sum256([]byte("enclave audit event v1\n" + string(h1[:]) + "\x00\x00\x00\x00\x00\x00\x00" + string([]byte{byte(len(j2))}) + j2))
	if got, want := one.Hash, hex.EncodeToString(h1[:]); got != want {
		t.Errorf("first hash is %s, want %s", got, want)
	}
	if got, want := two.Hash, hex.EncodeToString(h2[:]); got != want {
		t.Errorf("second hash is %s, want %s", got, want)
	}
	leaf := sha256.Sum256([]byte("\x00enclave audit leaf v1\n" + string(h2[:]) + "\x00\x00\x00\x00\x00\x00\x00\x02" + "s-abcdef-1"))
	got, err := Leaf(two)
	if err != nil || got != leaf {
		t.Errorf("leaf is %x, %v, want %x", got, err, leaf)
	}
}

func TestUntouchedRecordVerifies(t *testing.T) {
	if err := Verify(whole("s-1")); err != nil {
		t.Fatal(err)
	}
}

func TestVerifyNoticesEveryChange(t *testing.T) {
	for name, change := range map[string]func(e []Event) []Event{
		"nothing is left":            func(e []Event) []Event { return nil },
		"the first was dropped":      func(e []Event) []Event { return e[1:] },
		"one was dropped":            func(e []Event) []Event { return append(e[:3:3], e[4:]...) },
		"two were swapped":           func(e []Event) []Event { e[2], e[3] = e[3], e[2]; return e },
		"one is there twice":         func(e []Event) []Event { return append(e[:3:3], e[2:]...) },
		"one was renumbered":         func(e []Event) []Event { e[4].Seq = 7; return e },
		"one is of another session":  func(e []Event) []Event { e[2] = whole("s-2")[2]; return e },
		"all but one were renamed":   func(e []Event) []Event { e[0].Session = "s-2"; return e },
		"the session has no name":    func(e []Event) []Event { return whole("") },
		"one was replaced, resealed": func(e []Event) []Event { e[3].Data.Host = "x"; e[3] = Seal(e[2], e[3]); return e },
		"the hash is in upper case":  func(e []Event) []Event { e[8].Hash = "A" + e[8].Hash[1:]; return e },
		"there is no hash":           func(e []Event) []Event { e[8].Hash = ""; return e },
		"the type is new":            func(e []Event) []Event { return append(e, Seal(e[8], Event{Session: "s-1", Type: "novel"})) },
		"the time has nanoseconds":   func(e []Event) []Event { e[8].Time = e[8].Time.Add(1); return e },
		"the time is in a zone":      func(e []Event) []Event { e[8].Time = e[8].Time.In(time.FixedZone("", 3600)); return e },
		"the year is 10000":          func(e []Event) []Event { e[8].Time = e[8].Time.AddDate(8000, 0, 0); return e },
		"a measurement is no number": func(e []Event) []Event { f := math.NaN(); e[8].Data.CPUSeconds = &f; return e },
	} {
		if err := Verify(change(whole("s-1"))); err == nil {
			t.Errorf("%s: not noticed", name)
		} else {
			t.Logf("%s: %v", name, err)
		}
	}
}

// Who rewrites a record also computes its hashes. What those then cover still
// has to be a record: numbered without gaps, of one session, of known types, in
// times that have one spelling.
func TestVerifyRefusesWellHashedNonsense(t *testing.T) {
	for name, change := range map[string]func(e []Event){
		"a gap in the numbers":  func(e []Event) { e[5].Seq += 3 },
		"numbers from zero":     func(e []Event) { e[0].Seq = 0 },
		"two sessions":          func(e []Event) { e[5].Session = "s-2" },
		"no session":            func(e []Event) { e[0].Session = "" },
		"nanoseconds":           func(e []Event) { e[5].Time = e[5].Time.Add(1) },
		"a time in a zone":      func(e []Event) { e[5].Time = e[5].Time.In(time.FixedZone("", 3600)) },
		"a type that is no one": func(e []Event) { e[5].Type = "novel" },
		"nothing strange":       nil,
	} {
		events := whole("s-1")
		if change != nil {
			change(events)
		}
		var last [sha256.Size]byte
		for i := range events {
			b, err := canonical(events[i])
			if err != nil {
				t.Fatal(err)
			}
			last = digest(last, b)
			events[i].Hash = hex.EncodeToString(last[:])
		}
		if err := Verify(events); (err == nil) != (change == nil) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A field that is added to Event or Data is covered without changing this test.
func TestEveryFieldIsHashed(t *testing.T) {
	change := func(v reflect.Value) {
		if v.Kind() == reflect.Pointer {
			p := reflect.New(v.Type().Elem())
			if !v.IsNil() {
				p.Elem().Set(v.Elem())
			}
			v.Set(p)
			v = p.Elem()
		}
		switch v.Kind() {
		case reflect.String:
			v.SetString(v.String() + "x")
		case reflect.Bool:
			v.SetBool(!v.Bool())
		case reflect.Int, reflect.Int64:
			v.SetInt(v.Int() + 1)
		case reflect.Uint8, reflect.Uint16, reflect.Uint64:
			v.SetUint(v.Uint() + 1)
		case reflect.Float64:
			v.SetFloat(v.Float() + 1)
		case reflect.Struct:
			v.Set(reflect.ValueOf(v.Interface().(time.Time).Add(time.Microsecond)))
		default:
			t.Fatalf("a field of kind %v needs a case here", v.Kind())
		}
	}
	n := 0
	for _, inData := range []bool{false, true} {
		typ := reflect.TypeFor[Event]()
		if inData {
			typ = reflect.TypeFor[Data]()
		}
		for i := range typ.NumField() {
			if typ.Field(i).Type == reflect.TypeFor[Data]() {
				continue
			}
			events := whole("s-1")
			v := reflect.ValueOf(&events[4]).Elem()
			if inData {
				v = v.FieldByName("Data")
			}
			change(v.Field(i))
			if Verify(events) == nil {
				t.Errorf("a change of %s.%s is not noticed", typ.Name(), typ.Field(i).Name)
			}
			n++
		}
	}
	if n < 35 {
		t.Errorf("only %d fields were tried", n)
	}
}

func TestSealedEventSurvivesJSON(t *testing.T) {
	nan, inf, f := math.NaN(), math.Inf(1), 0.1+0.2
	for name, e := range map[string]Event{
		"nanoseconds in a zone": {Time: time.Date(2026, 1, 2, 3, 4, 5, 123456789, time.FixedZone("X", -7200))},
		"a monotonic clock":     {Time: time.Now()},
		"the zero time":         {},
		"invalid UTF-8":         {Data: Data{Host: "a\xff\xfeb", Evidence: "\xc0"}},
		"a replacement char":    {Data: Data{Host: "a\ufffdb"}},
		"both":                  {Data: Data{Host: "a\ufffd\xffb"}},
		"an escape spelled out": {Data: Data{Host: `\ufffd`}},
		"HTML and separators":   {Data: Data{Host: "<&>\u2028\x00\x7f"}},
		"no numbers":            {Data: Data{CPUSeconds: &nan, WallSeconds: &inf}},
		"a long number":         {Data: Data{CPUSeconds: &f}},
	} {
		e.Session, e.Type = "s-1", SessionCreated
		sealed := Seal(Event{}, e)
		b, err := json.Marshal(sealed)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var again Event
		if err := json.Unmarshal(b, &again); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if d := cmp.Diff(sealed, again); d != "" {
			t.Errorf("%s: %s", name, d)
		}
		if !again.Time.Equal(sealed.Time) || again.Time.String() != sealed.Time.String() {
			t.Errorf("%s: time %v became %v", name, sealed.Time, again.Time)
		}
		if err := Verify([]Event{again}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzSeal checks that whatever a sandbox puts into an event verifies after it
// was read back. What it should read back as is known without audit: Go's own
// conversion to runes replaces invalid bytes as JSON does.
func FuzzSeal(f *testing.F) {
	f.Add("evil.example.com", uint16(443), 1.5, int64(1))
	f.Add("\xff\ufffd\\ufffd", uint16(0), math.NaN(), int64(-1<<50))
	f.Fuzz(func(t *testing.T, host string, port uint16, cpu float64, micros int64) {
		at := time.UnixMicro(micros % (200_000_000_000 * 1_000_000)).UTC()
		if at.Year() < 1 || at.Year() > 9999 {
			t.Skip()
		}
		e := Seal(Event{}, Event{Session: "s-1", Time: at, Type: EgressDenied, Data: Data{Host: host, Port: port, CPUSeconds: &cpu}})
		b, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		var again Event
		if err := json.Unmarshal(b, &again); err != nil {
			t.Fatal(err)
		}
		if err := Verify([]Event{again}); err != nil {
			t.Fatalf("%q: %v", host, err)
		}
		if want := string([]rune(host)); again.Data.Host != want || !utf8.ValidString(again.Data.Host) {
			t.Fatalf("host %q became %q, want %q", host, again.Data.Host, want)
		}
		if !again.Time.Equal(at) {
			t.Fatalf("time %v became %v", at, again.Time)
		}
	})
}

func TestNothingFollowsAnUnsealedEvent(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("an event was sealed behind one that has no hash")
		}
	}()
	Seal(Event{Seq: 3}, Event{Session: "s-1", Type: EgressDenied})
}

func BenchmarkVerify100k(b *testing.B) {
	types := []Type{SessionCreated, SandboxStarted}
	for len(types) < 100_000 {
		types = append(types, EgressDenied)
	}
	events := chain("s-1", types...)
	b.ReportAllocs()
	for b.Loop() {
		if err := Verify(events); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(len(events)*b.N)/b.Elapsed().Seconds(), "events/s")
}

func ExampleSeal() {
	e := Seal(Event{}, Event{Session: "s-1", Time: clock(0), Type: SessionCreated})
	fmt.Println(e.Seq, e.Hash[:8], Verify([]Event{e}))
	// Output: 1 2eba8671 <nil>
}
