package terminal_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"

	"github.com/enclave-run/enclave/internal/terminal"
)

// attacks are what a workload would say to a terminal.
var attacks = []string{
	"\x1b]52;c;cm0gLXJmIC8=\x07", "\x1b]0;title\x1b\\", "\x1b]8;;http://evil.example\x1b\\here\x1b]8;;\x1b\\",
	"\x1b[2J\x1b[H", "\x1b[31mred", "\x1b[?1049h", "\x1b[8m", "\x1b[6n", "\x1bc", "\x1bP$q\"p\x1b\\", "\x1b_G\x1b\\", "\x1b^x\x1b\\",
	"\x9b2J", "\x9d52;c;eA==\x9c", "\x90q\x9c", "\u009b31m", "\u009d0;t\u009c", "\u0085", "\x84", "a\x08b", "bell\x07", "\x0e\x0f", "\x7f", "\x05", "\x00",
	"ok\rNO", "line\r\nnext", "\v\f", "\u202eevil\u202c", "\u2066x\u2069", "\u200e\u200f\u061c", "a\u200bb\ufeffc\u2060d", "\u2028\u2029",
	"\U000e0001\U000e0041\U000e007f", "\u00ad", "\u034f", "\u3164\u115f\uffa0", "\ufe0f\U000e0100", "\ue000\U0010ffff", "\ufff9\ufffb",
	"\xe2\x80", "\xe2\x80\x1b[31m", "\xf0\x9f\x98", "\xed\xa0\x80", "\xc0\x9b", "\xf8\x88\x80\x80\x80", "\xff\xfe", "\\x1b[31m",
	"plain text\tand é 漢字 🙂\n",
}

// inert is the oracle: it says what a terminal of UTF-8 would obey or hide in b,
// by ranges that are written out here.
func inert(b []byte) error {
	for i := 0; i < len(b); {
		r, n := utf8.DecodeRune(b[i:])
		if r == utf8.RuneError && n <= 1 {
			return fmt.Errorf("byte %d, %#x, is not UTF-8", i, b[i])
		}
		for _, bad := range [][2]rune{
			{0, 8}, {0xb, 0x1f}, {0x7f, 0xa0}, {0xad, 0xad}, {0x34f, 0x34f}, {0x61c, 0x61c}, {0x115f, 0x1160}, {0x17b4, 0x17b5},
			{0x180b, 0x180f}, {0x200b, 0x200f}, {0x2028, 0x202e}, {0x2060, 0x206f}, {0x3164, 0x3164}, {0xd800, 0xf8ff}, {0xfe00, 0xfe0f},
			{0xfeff, 0xfeff}, {0xffa0, 0xffa0}, {0xfff0, 0xfffb}, {0xe0000, 0x10ffff},
		} {
			if bad[0] <= r && r <= bad[1] {
				return fmt.Errorf("%U at byte %d", r, i)
			}
		}
		i += n
	}
	return nil
}

// every is each byte, alone and before and after others.
func every() []byte {
	var b []byte
	for c := range 256 {
		b = append(b, byte(c), 'x', byte(c), byte(c), '[', 'A')
	}
	return b
}

// pieces is what a Writer makes of text that comes in the pieces that cut says.
func pieces(text []byte, cut func(left int) int) []byte {
	var out bytes.Buffer
	w := terminal.New(&out, false)
	for len(text) > 0 {
		n := cut(len(text))
		if m, err := w.Write(text[:n]); m != n || err != nil {
			panic(fmt.Sprint(m, err))
		}
		text = text[n:]
	}
	if err := w.Flush(); err != nil {
		panic(err)
	}
	return out.Bytes()
}

func whole(left int) int { return left }

func TestWhateverIsWrittenIsInertInWhateverPieces(t *testing.T) {
	for _, text := range append(attacks, string(every())) {
		got := pieces([]byte(text), whole)
		if err := inert(got); err != nil {
			t.Errorf("%q is shown as %q: %v", text, got, err)
		}
		for size := 1; size < 5; size++ {
			if other := pieces([]byte(text), func(left int) int { return min(size, left) }); !bytes.Equal(got, other) {
				t.Errorf("%q in pieces of %d is shown as %q, whole as %q", text, size, other, got)
			}
		}
	}
}

func FuzzWriter(f *testing.F) {
	for _, a := range attacks {
		f.Add([]byte(a), uint64(1))
	}
	f.Fuzz(func(t *testing.T, text []byte, seed uint64) {
		rng := rand.New(rand.NewPCG(seed, 0))
		got := pieces(text, func(left int) int { return 1 + rng.IntN(left) })
		if err := inert(got); err != nil {
			t.Errorf("%q is shown as %q: %v", text, got, err)
		}
		if one := pieces(text, whole); !bytes.Equal(got, one) {
			t.Errorf("%q: %q in pieces, %q whole", text, got, one)
		}
		if err := inert([]byte(terminal.Visible(string(text)))); err != nil || strings.ContainsAny(terminal.Visible(string(text)), "\n\t") {
			t.Errorf("Visible(%q): %v", text, err)
		}
	})
}

// Text that a terminal only shows is what it was.
func TestTextIsShownAsItIs(t *testing.T) {
	for _, text := range []string{"", "a\tb\n\n", "naïve 漢字 עברית 🙂 ▣✓─ \\n", "a\u0301"} {
		if got := pieces([]byte(text), whole); string(got) != text {
			t.Errorf("%q is shown as %q", text, got)
		}
	}
}

// A progress bar is legible, and overwrites nothing.
func TestACarriageReturnEndsTheLine(t *testing.T) {
	for text, want := range map[string]string{"10%\r20%\r\n": "10%\n20%\n", "a\r\r\nb": "a\n\nb", "a\r\n\nb": "a\n\nb", "\r": "\n"} {
		if got := pieces([]byte(text), func(int) int { return 1 }); string(got) != want {
			t.Errorf("%q is shown as %q, want %q", text, got, want)
		}
	}
}

// A terminal's JSON is JSON of the same value.
func TestJSONStaysWhatItWas(t *testing.T) {
	for _, text := range append(attacks, string(every())) {
		want, err := json.Marshal(text)
		if err != nil {
			t.Fatal(err)
		}
		got := pieces(want, whole)
		var a, b string
		if err := json.Unmarshal(want, &a); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(got, &b); err != nil || a != b {
			t.Errorf("%s is shown as %s, which is %q, not %q: %v", want, got, b, a, err)
		}
	}
}

// Styles are for our own text, and nothing but them is passed on.
func TestOnlyStyledWritersPassStyles(t *testing.T) {
	var out bytes.Buffer
	w := terminal.New(&out, false)
	io.WriteString(w.Styled(), terminal.Paint(terminal.BoldRed, "a\x1b[2Jb")+"\x1b[8m")
	if want := "\x1b[1;31ma\\u001b[2Jb\x1b[0m\\u001b[8m"; out.String() != want {
		t.Errorf("styled: %q, want %q", out.String(), want)
	}
	out.Reset()
	io.WriteString(w, terminal.Paint(terminal.BoldRed, "a"))
	if err := inert(out.Bytes()); err != nil {
		t.Errorf("not styled: %q: %v", out.String(), err)
	}
}

func TestALineThatIsRewrittenIsInert(t *testing.T) {
	var out bytes.Buffer
	if err := terminal.New(&out, false).Rewrite("50%\x1b[2J\xe2"); err != nil {
		t.Fatal(err)
	}
	if want := "\r50%\\u001b[2J\\xe2\x1b[K"; out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
}

// A terminal that is not of UTF-8 would read ś, which is C5 9B, as CSI.
func TestATerminalOfBytesGetsASCII(t *testing.T) {
	var out bytes.Buffer
	io.WriteString(terminal.New(&out, true), "ś31m é\n")
	if want := "\\u015b31m \\u00e9\n"; out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
	for env, want := range map[string]bool{
		"": false, "LANG=C.UTF-8": false, "LANG=en_US.utf8": false, "LANG=de_DE.ISO-8859-1": true, "LC_ALL=C LANG=C.UTF-8": true, "LC_CTYPE=C.UTF-8 LANG=C": false, "LANG=POSIX": true,
	} {
		get := func(name string) string {
			for v := range strings.FieldsSeq(env) {
				if k, v, _ := strings.Cut(v, "="); k == name {
					return v
				}
			}
			return ""
		}
		if terminal.ASCII(get) != want {
			t.Errorf("%q: ASCII is %v", env, !want)
		}
	}
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestAnErrorOfTheTerminalIsTheWriters(t *testing.T) {
	if n, err := terminal.New(broken{}, false).Write([]byte("a\x1b")); n != 0 || err != io.ErrClosedPipe {
		t.Errorf("%d, %v", n, err)
	}
}

// A write is one write, whoever else writes.
func TestWritesDoNotMix(t *testing.T) {
	var out bytes.Buffer
	w := terminal.New(&out, false)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 100 {
				io.WriteString(w, "\x1babc\n")
			}
		})
	}
	all.Wait()
	if want := strings.Repeat("\\u001babc\n", 800); out.String() != want {
		t.Error("lines are mixed")
	}
}

func BenchmarkPlainText(b *testing.B) {
	text := bytes.Repeat([]byte("a line of plain output of a program\n"), 1000)
	w := terminal.New(io.Discard, false)
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		w.Write(text)
	}
}
