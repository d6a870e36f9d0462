package enclave

import (
	"bufio"
	"bytes"
	"reflect"
	"strings"
	"testing"
)

// The oracle cuts the whole text at once, where the reader goes line by line.
func FuzzReadMessage(f *testing.F) {
	for _, s := range []string{
		"id: 1\nevent: phase\ndata: {}\n\n", "data: a\ndata: b\n\n", ": comment\n\ndata: x\r\n\r\n", "id: 1\n\ndata\n\n", "data:a:b\n\nrest",
		"data:  two\n\n", "event:x\nid\nfoo: bar\ndata: \n\n", "\n\n\n", "data: x",
	} {
		f.Add([]byte(s), 16)
	}
	f.Fuzz(func(t *testing.T, b []byte, size int) {
		r := bufio.NewReaderSize(bytes.NewReader(b), max(16, min(size, 1<<16)))
		var got []message
		lines := 0
		for {
			m, err := readMessage(r, func() { lines++ })
			if err != nil {
				break
			}
			got = append(got, m)
		}
		whole := strings.Split(string(b), "\n")
		if want := len(whole) - 1; lines != want {
			t.Fatalf("%d lines, want %d", lines, want)
		}
		for i, l := range whole {
			whole[i] = strings.TrimSuffix(l, "\r")
		}
		whole = whole[:len(whole)-1]
		var want []message
		for len(whole) > 0 {
			n := 0
			for n < len(whole) && whole[n] != "" {
				n++
			}
			if n == len(whole) {
				break
			}
			m, has := message{}, []string(nil)
			for _, l := range whole[:n] {
				k, v, _ := strings.Cut(l, ":")
				v = strings.TrimPrefix(v, " ")
				switch k {
				case "id":
					m.id = v
				case "event":
					m.event = v
				case "data":
					has = append(has, v)
				}
			}
			if whole = whole[n+1:]; has != nil {
				m.data = []byte(strings.Join(has, "\n"))
				want = append(want, m)
			}
		}
		if len(got) != len(want) {
			t.Fatalf("%q: %d messages, want %d", b, len(got), len(want))
		}
		for i := range got {
			if len(got[i].data) == 0 {
				got[i].data = []byte{}
			}
			if !reflect.DeepEqual(got[i], want[i]) {
				t.Fatalf("%q: %q, want %q", b, got[i], want[i])
			}
			if e, err := got[i].decode(); err == nil && e.Kind != "" && e.Kind != got[i].event {
				t.Fatalf("%q became %+v", got[i], e)
			}
		}
	})
}

func TestLineWithoutAnEndIsCut(t *testing.T) {
	src := strings.NewReader(strings.Repeat("x", 1<<20))
	if _, err := readLine(bufio.NewReader(src), 100_000); !refusal(err) {
		t.Errorf("%v", err)
	}
	if src.Len() == 0 {
		t.Error("it was read to its end")
	}
}
