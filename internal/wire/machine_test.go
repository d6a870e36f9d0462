package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func goodSetup() *Setup {
	return &Setup{
		Version: Version, Entropy: bytes.Repeat([]byte{7}, EntropySize), Now: 1, ID: "abcdefghij0123456789",
		UID: 1000, GID: 1000, Pids: 1, Memory: 1, Disk: 1, Run: 1, Shm: 1,
	}
}

func TestBootChannelCarriesEveryMessage(t *testing.T) {
	zero := 0
	for _, tc := range []struct{ want, got checker }{
		{&Machine{Version: Version}, &Machine{}},
		{goodSetup(), &Setup{}},
		{&Report{Seq: 1, Tasks: 2, ForksRefused: 3, Memory: 4, OOMKills: 5, Disk: 6, Exit: &zero}, &Report{}},
		{&Report{}, &Report{}},
		{&Look{Seq: 9}, &Look{}},
	} {
		want, got := tc.want, tc.got
		var b bytes.Buffer
		if err := SendLine(&b, want); err != nil {
			t.Fatal(err)
		}
		r := NewLineReader(&b)
		if err := r.Next(got); err != nil {
			t.Fatalf("%+v: %v", want, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		if err := r.Next(got); err != io.EOF {
			t.Errorf("after the last message: %v", err)
		}
	}
}

func TestLineThatBreaksARuleIsRefused(t *testing.T) {
	alter := func(f func(*Setup)) string {
		s := goodSetup()
		f(s)
		b, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for name, tc := range map[string]struct {
		line string
		into checker
	}{
		"no JSON":                   {"hello", &Report{}},
		"no object":                 {"[]", &Report{}},
		"null":                      {"null", &Report{}},
		"an unknown field":          {`{"tasks":1,"uid":0}`, &Report{}},
		"a field twice":             {`{"tasks":1,"tasks":2}`, &Report{}},
		"a field twice, in capital": {`{"tasks":1,"Tasks":2}`, &Report{}},
		"two on a line":             {`{"tasks":1}{"tasks":2}`, &Report{}},
		"a number below zero":       {`{"memory":-1}`, &Report{}},
		"more than there can be":    {`{"disk":9000000000000000000}`, &Report{}},
		"a fraction":                {`{"tasks":1.5}`, &Report{}},
		"an impossible exit":        {`{"exit":256}`, &Report{}},
		"another version":           {`{"version":4}`, &Machine{}},
		"no version":                {`{}`, &Machine{}},
		"a look without a number":   {`{}`, &Look{}},
		"root as the workload":      {alter(func(s *Setup) { s.UID = 0 }), &Setup{}},
		"nobody's group":            {alter(func(s *Setup) { s.GID = 1<<32 - 1 }), &Setup{}},
		"too little entropy":        {alter(func(s *Setup) { s.Entropy = s.Entropy[1:] }), &Setup{}},
		"no entropy":                {alter(func(s *Setup) { s.Entropy = nil }), &Setup{}},
		"no wall of tasks":          {alter(func(s *Setup) { s.Pids = 0 }), &Setup{}},
		"no wall of memory":         {alter(func(s *Setup) { s.Memory = 0 }), &Setup{}},
		"no wall of disk":           {alter(func(s *Setup) { s.Disk = -1 }), &Setup{}},
		"no time":                   {alter(func(s *Setup) { s.Now = 0 }), &Setup{}},
		"no id":                     {alter(func(s *Setup) { s.ID = "" }), &Setup{}},
	} {
		if err := NewLineReader(strings.NewReader(tc.line + "\n")).Next(tc.into); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// endless gives what never has an end of line, and counts what was taken.
type endless struct{ read int }

func (e *endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	e.read += len(p)
	return len(p), nil
}

func TestEndlessLineIsNotRead(t *testing.T) {
	e := &endless{}
	if err := NewLineReader(e).Next(&Report{}); !errors.Is(err, ErrProtocol) {
		t.Error(err)
	}
	if e.read > maxLine {
		t.Errorf("%d bytes were read", e.read)
	}
}

func TestHalfALineIsAnUnexpectedEnd(t *testing.T) {
	if err := NewLineReader(strings.NewReader(`{"tasks":1}`)).Next(&Report{}); err != io.ErrUnexpectedEOF {
		t.Error(err)
	}
}

// FuzzReport holds what is taken for a report to what it says: encoded again and
// decoded by another reader, it is the same.
func FuzzReport(f *testing.F) {
	f.Add([]byte(`{"seq":1,"tasks":2,"exit":0}`))
	f.Add([]byte(`{"tasks":1,"TASKS":2}`))
	f.Add([]byte(`{"exit":null}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		var r Report
		if err := decodeLine(line, &r); err != nil {
			return
		}
		if min(r.Tasks, r.ForksRefused, r.Memory, r.OOMKills, r.Disk) < 0 || max(r.Tasks, r.ForksRefused, r.Memory, r.OOMKills, r.Disk) > 1<<50 {
			t.Fatalf("%q: %+v", line, r)
		}
		var fields map[string]any
		if err := json.Unmarshal(line, &fields); err != nil {
			t.Fatalf("%q is not an object: %v", line, err)
		}
		if len(fields) > 7 {
			t.Fatalf("%q has more fields than a report", line)
		}
	})
}
