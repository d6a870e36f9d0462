// Package terminal shows text on a terminal that others chose: a workload, a
// client, an image, a server. The terminal shows it and obeys none of it. The
// package refuses to judge what the text says, and it changes nothing that does
// not go to a terminal.
package terminal

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"
)

// A Style is how a piece of text of our own looks (ECMA-48, SGR). No other
// sequence is ever passed on: none of these hides text or moves the cursor.
type Style string

// The styles that Writer.Styled passes on.
const (
	Plain     Style = "0"
	Dim       Style = "2"
	Green     Style = "32"
	Yellow    Style = "33"
	BoldRed   Style = "1;31"
	BoldGreen Style = "1;32"
	BoldCyan  Style = "1;36"
)

var styles = [...]Style{Plain, Dim, Green, Yellow, BoldRed, BoldGreen, BoldCyan}

func (s Style) sequence() string { return "\x1b[" + string(s) + "m" }

// Paint returns text in a style, for a Writer's Styled.
func Paint(s Style, text string) string { return s.sequence() + text + Plain.sequence() }

// A Writer passes text on to a terminal. Printable text, line feeds and tabs go
// as they are. A carriage return ends the line, so that nothing overwrites what
// is there. Everything else is written as an escape that JSON reads as what it
// was: \u001b. Bytes that are not UTF-8 are written as \x9b.
//
// A character may come in several writes. A Writer is safe for concurrent use.
type Writer struct {
	w     io.Writer
	ascii bool

	mu      sync.Mutex
	partial []byte // the start of a character whose rest has not come
	ended   bool   // the last character was a carriage return
	buf     []byte
}

// New returns a Writer to the terminal w. One that is not of UTF-8 takes the
// bytes of a character for characters, and some of those for commands: it gets
// ASCII alone.
func New(w io.Writer, ascii bool) *Writer { return &Writer{w: w, ascii: ascii} }

// Write writes p. It reports all of p as written, or none.
func (t *Writer) Write(p []byte) (int, error) { return t.write(p, false) }

// Styled returns a writer of our own text to the same terminal: it passes on the
// styles of Paint too.
func (t *Writer) Styled() io.Writer { return styled{t} }

type styled struct{ t *Writer }

func (s styled) Write(p []byte) (int, error) { return s.t.write(p, true) }

// Unfiltered returns the terminal itself, for who asked for it.
func (t *Writer) Unfiltered() io.Writer { return t.w }

// Rewrite replaces the line that the cursor is in with text.
func (t *Writer) Rewrite(text string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf[:0], '\r')
	t.finish()
	t.filter([]byte(text), false)
	t.finish()
	_, err := t.w.Write(append(t.buf, "\x1b[K"...))
	return err
}

// Flush writes the start of a character whose rest will not come.
func (t *Writer) Flush() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = t.buf[:0]
	if t.finish(); len(t.buf) == 0 {
		return nil
	}
	_, err := t.w.Write(t.buf)
	return err
}

func (t *Writer) write(p []byte, own bool) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := p
	if len(t.partial) > 0 || t.ended || !harmless(p) {
		t.buf = t.buf[:0]
		t.filter(p, own)
		out = t.buf
	}
	if len(out) > 0 {
		if _, err := t.w.Write(out); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// harmless reports whether p is printable ASCII, line feeds and tabs, as most is.
func harmless(p []byte) bool {
	for _, c := range p {
		if (c < ' ' || c > '~') && c != '\n' && c != '\t' {
			return false
		}
	}
	return true
}

// filter appends p to what is written.
func (t *Writer) filter(p []byte, own bool) {
	if len(t.partial) > 0 {
		// At most three bytes: a character has no more than four.
		p = append(t.partial[:len(t.partial):len(t.partial)], p...)
		t.partial = nil
	}
	for len(p) > 0 {
		if !utf8.FullRune(p) {
			t.partial = append([]byte(nil), p...)
			return
		}
		if own && p[0] == '\x1b' {
			if n := ownSequence(p); n > 0 {
				t.buf, t.ended, p = append(t.buf, p[:n]...), false, p[n:]
				continue
			}
		}
		r, n := utf8.DecodeRune(p)
		t.put(r, p[:n])
		p = p[n:]
	}
}

// put appends a character, which is the bytes b.
func (t *Writer) put(r rune, b []byte) {
	after := t.ended
	t.ended = r == '\r'
	switch {
	case r == '\r', r == '\n' && !after:
		t.buf = append(t.buf, '\n')
	case r == '\n': // its line has been ended by the carriage return
	case r == utf8.RuneError && len(b) == 1:
		t.buf = fmt.Appendf(t.buf, `\x%02x`, b[0])
	case r == '\t' || Shows(r) && (!t.ascii || r < utf8.RuneSelf):
		t.buf = append(t.buf, b...)
	default:
		t.buf = appendEscape(t.buf, r)
	}
}

// finish appends what is left of a character whose rest did not come.
func (t *Writer) finish() {
	for _, c := range t.partial {
		t.buf = fmt.Appendf(t.buf, `\x%02x`, c)
	}
	t.partial, t.ended = nil, false
}

// ownSequence is the length of the style that p begins with, or 0.
func ownSequence(p []byte) int {
	for _, s := range styles {
		if seq := s.sequence(); len(p) >= len(seq) && string(p[:len(seq)]) == seq {
			return len(seq)
		}
	}
	return 0
}

// appendEscape appends r as JSON escapes it (RFC 8259, 7).
func appendEscape(b []byte, r rune) []byte {
	if r >= 0x10000 {
		r -= 0x10000
		return fmt.Appendf(b, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
	}
	return fmt.Appendf(b, `\u%04x`, r)
}

// Shows reports whether a terminal shows r, and does nothing else for it: no
// control character, none that changes the direction of text (CVE-2021-42574),
// none that nobody sees.
func Shows(r rune) bool {
	return unicode.IsPrint(r) && !unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector)
}

// Visible returns s on one line, with everything escaped that a terminal would
// obey or hide. The escapes are those of a Go string; a backslash is doubled.
func Visible(s string) string {
	plain := true
	for i := 0; i < len(s) && plain; i++ {
		plain = s[i] >= ' ' && s[i] <= '~' && s[i] != '\\'
	}
	if plain {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\\':
			b.WriteString(`\\`)
		case Shows(r):
			b.WriteRune(r)
		case r < 0x100:
			fmt.Fprintf(&b, `\x%02x`, r)
		case r < 0x10000:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			fmt.Fprintf(&b, `\U%08x`, r)
		}
		i += n
	}
	return b.String()
}

// ASCII reports whether an environment names a character set that is not UTF-8
// (locale(7)). One that names none is taken for UTF-8.
func ASCII(env func(string) string) bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		v := env(name)
		if v == "" {
			continue
		}
		set := strings.NewReplacer("-", "", "_", "").Replace(strings.ToLower(v))
		return !strings.Contains(set, "utf8")
	}
	return false
}
