package ui

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/enclave-run/enclave"
)

func TestSizesMeanWhatTheySay(t *testing.T) {
	for text, want := range map[string]int64{
		"512": 512 << 20, "512M": 512 << 20, "512m": 512 << 20, "512MiB": 512 << 20, "512MB": 512 << 20, "2G": 2 << 30,
		"1.5G": 3 << 29, "1024k": 1 << 20, "1048576b": 1 << 20, "0": 0, "-1": -1 << 20,
	} {
		s := Size{Unit: 1 << 20}
		if err := s.Set(text); err != nil || s.bytes != want {
			t.Errorf("%q is %d, want %d: %v", text, s.bytes, want, err)
		}
	}
	for _, text := range []string{"", "M", "1X", "1e400", "NaN", "inf", "1 2", "0x10", "99999999999999G", "12Mi3"} {
		s := Size{Unit: 1 << 20}
		if err := s.Set(text); err == nil {
			t.Errorf("%q is %d", text, s.bytes)
		}
	}
}

func TestDenialsAreCountedAndSayWhatPermitsThem(t *testing.T) {
	got := denialLines([]enclave.EventData{
		{Host: "a.example", Protocol: "dns", Reason: "not_allowed", Count: 1},
		{Host: "10.0.0.1", Port: 22, Protocol: "tcp", Reason: "not_allowed", Count: 1},
		{Host: "a.example", Protocol: "dns", Reason: "not_allowed", Count: 4},
		{Host: "8.8.8.8", Port: 53, Protocol: "udp", Reason: "protocol", Count: 1},
		{Host: "fd00::1", Port: 443, Protocol: "tcp", Reason: "not_allowed", Count: 1},
		{Host: "evil\x1b[2J\u202e", Protocol: "dns", Reason: "bad_host", Count: 1},
	})
	want := []string{
		"denied: a.example (dns): not_allowed, 5 times; to permit it: --allow a.example",
		"denied: 10.0.0.1:22 (tcp): not_allowed; to permit it: --allow 10.0.0.1:22",
		"denied: 8.8.8.8:53 (udp): protocol",
		"denied: [fd00::1]:443 (tcp): not_allowed; to permit it: --allow fd00::1",
		`denied: evil\x1b[2J\u202e (dns): bad_host`,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestTableEscapesEveryCell(t *testing.T) {
	var b strings.Builder
	tb := NewTable(&b, "ID", "LABEL")
	tb.Row("s-1", "a\x1b]0;title\x07\tb\r\nc")
	if err := tb.Flush(); err != nil {
		t.Fatal(err)
	}
	want := "ID   LABEL\ns-1  a\\x1b]0;title\\x07\\tb\\r\\nc\n"
	if got := b.String(); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func FuzzVisibleLeavesNothingThatATerminalObeys(f *testing.F) {
	for _, s := range []string{"plain", "\x1b[31m", "a\xffb", "\u202eabc", "\u200b", "é漢字", "\U000e0041", "\\x1b", "\u0085", "\u2028", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := Visible(s)
		if !utf8.ValidString(got) {
			t.Fatalf("%q became invalid: %q", s, got)
		}
		// The oracle is a list of Unicode categories, which the code does not use.
		for _, r := range got {
			if unicode.In(r, unicode.Cc, unicode.Cf, unicode.Co, unicode.Cs, unicode.Zl, unicode.Zp) {
				t.Fatalf("%q kept %U", s, r)
			}
		}
		if !strings.Contains(s, `\`) && got == s {
			return
		}
		if strings.Count(got, `\\`) < strings.Count(s, `\`) {
			t.Fatalf("%q lost a backslash: %q", s, got)
		}
	})
}
