// Package jsontext writes JSON that is inert where it is shown: a character
// that could steer a terminal or reorder a line is a \u escape in it. It parses
// nothing, and what a JSON text says is the same before and after.
package jsontext

import "unicode/utf8"

// Steers reports whether r acts on what shows it instead of being shown: DEL
// and the C1 controls (ECMA-48), the controls of the bidirectional algorithm
// (UAX #9), and the separators that end a line in some readers and not in
// others. The C0 controls are not in it: JSON has no way to hold them raw.
func Steers(r rune) bool {
	switch {
	case r < 0x7f:
		return false
	case r <= 0x9f, r == 0x061c, r == 0x200e, r == 0x200f:
		return true
	case r >= 0x2028 && r <= 0x202e:
		return true
	}
	return r >= 0x2066 && r <= 0x2069
}

// leads reports whether c can be the first byte, in UTF-8, of a character of
// Steers.
func leads(c byte) bool { return c == 0x7f || c == 0xc2 || c == 0xd8 || c == 0xe2 }

// Inert returns the JSON text with each character that Steers as its escape.
// Outside of strings JSON has none. Text that has none is returned as it is.
func Inert(text []byte) []byte {
	var out []byte
	kept := 0 // what of text is in out
	for i := 0; i < len(text); {
		if !leads(text[i]) {
			i++
			continue
		}
		r, n := utf8.DecodeRune(text[i:])
		if Steers(r) {
			out = appendEscape(append(out, text[kept:i]...), r)
			kept = i + n
		}
		i += n
	}
	if kept == 0 {
		return text
	}
	return append(out, text[kept:]...)
}

// AppendString appends src as it is between the quotes of a JSON string, and
// returns how many bytes of src it took. Each byte that is not part of valid
// UTF-8 becomes U+FFFD. Unless last is true, the beginning of a character whose
// rest may follow is left: at most three bytes.
func AppendString(dst, src []byte, last bool) ([]byte, int) {
	for i := 0; i < len(src); {
		plain := i
		for i < len(src) && isPlain(src[i]) {
			i++
		}
		dst = append(dst, src[plain:i]...)
		if i == len(src) {
			break
		}
		if c := src[i]; c < utf8.RuneSelf {
			dst = appendControl(dst, c)
			i++
			continue
		}
		r, n := utf8.DecodeRune(src[i:])
		switch {
		case r == utf8.RuneError && n == 1 && !last && !utf8.FullRune(src[i:]):
			return dst, i
		case Steers(r):
			dst = appendEscape(dst, r)
		default:
			dst = utf8.AppendRune(dst, r)
		}
		i += n
	}
	return dst, len(src)
}

// isPlain reports whether c stands for itself in a string.
func isPlain(c byte) bool { return c >= ' ' && c < 0x7f && c != '"' && c != '\\' }

// appendControl appends what stands for c, which is ASCII and not plain.
func appendControl(dst []byte, c byte) []byte {
	switch {
	case c == '"' || c == '\\':
		return append(dst, '\\', c)
	case c == '\b':
		return append(dst, '\\', 'b')
	case c == '\f':
		return append(dst, '\\', 'f')
	case c == '\n':
		return append(dst, '\\', 'n')
	case c == '\r':
		return append(dst, '\\', 'r')
	case c == '\t':
		return append(dst, '\\', 't')
	}
	return appendEscape(dst, rune(c))
}

// appendEscape appends the escape of r, which is in the basic plane.
func appendEscape(dst []byte, r rune) []byte {
	const hex = "0123456789abcdef"
	return append(dst, '\\', 'u', hex[r>>12&0xf], hex[r>>8&0xf], hex[r>>4&0xf], hex[r&0xf])
}
