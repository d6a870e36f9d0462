package secret

import (
	"bytes"
	"compress/bzip2"
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"encoding/binary"
	"encoding/hex"
	"html"
	"io"
	"strconv"
	"unicode/utf8"
)

const (
	minRun     = 16      // characters of an alphabet in a row that are worth decoding
	maxInflate = 4 << 20 // bytes out of one compressed stream
	maxStreams = 1000    // that a buffer is searched for: each costs memory to begin
)

// A decoder yields what b may be an encoding of, or what parts of it may. It
// stops when yield returns false.
type decoder struct {
	name   string
	decode func(b []byte, yield func([]byte) bool)
}

func decoders() []decoder {
	return []decoder{
		{"escapes", unescape},
		{"numbers", numbers},
		{"compressed", inflate},
		{"hex", unhex},
		{"base64", unbase64},
		{"base32", unbase32},
	}
}

// unescape undoes JSON's, C's and Go's escapes, percent-encoding and HTML
// entities, wherever they stand.
func unescape(b []byte, yield func([]byte) bool) {
	out := make([]byte, 0, len(b))
	changed := false
	for i := 0; i < len(b); {
		n := 0
		switch b[i] {
		case '\\':
			out, n = backslash(out, b[i:])
		case '%':
			out, n = hexByte(out, b[i:], 1)
		case '&':
			out, n = entity(out, b[i:])
		}
		if n == 0 {
			out = append(out, b[i])
			i++
			continue
		}
		changed = true
		i += n
	}
	if changed {
		yield(out)
	}
}

// backslash appends what the escape at the start of b means, and returns its
// length; 0 if it is none.
func backslash(out, b []byte) ([]byte, int) {
	if len(b) < 2 {
		return out, 0
	}
	switch c := b[1]; {
	case c == 'u' && len(b) >= 6:
		if r, err := strconv.ParseUint(string(b[2:6]), 16, 16); err == nil {
			return utf8.AppendRune(out, rune(r)), 6
		}
		return out, 0
	case c == 'x':
		return hexByte(out, b, 2)
	case len(b) >= 4 && '0' <= c && c <= '3':
		if v, err := strconv.ParseUint(string(b[1:4]), 8, 8); err == nil {
			return append(out, byte(v)), 4
		}
		return out, 0
	case c == 'n' || c == 'r':
		return append(out, '\n'), 2
	default:
		return append(out, c), 2
	}
}

// hexByte appends the byte whose two hex digits are at b[at:].
func hexByte(out, b []byte, at int) ([]byte, int) {
	if len(b) < at+2 {
		return out, 0
	}
	v, err := hex.DecodeString(string(b[at : at+2]))
	if err != nil {
		return out, 0
	}
	return append(out, v...), at + 2
}

func entity(out, b []byte) ([]byte, int) {
	end := bytes.IndexByte(b[:min(len(b), 12)], ';')
	if end < 0 {
		return out, 0
	}
	in := string(b[:end+1])
	if s := html.UnescapeString(in); s != in {
		return append(out, s...), end + 1
	}
	return out, 0
}

// numbers reads lists of byte values, decimal or 0x.
func numbers(b []byte, yield func([]byte) bool) {
	var out, list []byte
	flush := func() {
		if len(list) >= minForm {
			out = append(append(out, list...), 0)
		}
		list = list[:0]
	}
	for i := 0; i < len(b); {
		if !alnum(b[i]) {
			i++
			continue
		}
		j := i
		for j < len(b) && alnum(b[j]) {
			j++
		}
		if v, ok := byteValue(b[i:j]); ok {
			list = append(list, v)
		} else {
			flush()
		}
		i = j
	}
	flush()
	if len(out) > 0 {
		yield(out)
	}
}

func byteValue(token []byte) (byte, bool) {
	if len(token) > 4 || token[0] < '0' || token[0] > '9' {
		return 0, false
	}
	base := 10
	if digits, ok := bytes.CutPrefix(bytes.ToLower(token), []byte("0x")); ok {
		token, base = digits, 16
	}
	v, err := strconv.ParseUint(string(token), base, 8)
	return byte(v), err == nil
}

// inflate decompresses what begins, anywhere in b, like gzip, zlib, bzip2 or an
// entry of a zip file. What came before an error counts.
func inflate(b []byte, yield func([]byte) bool) {
	streams := 0
	for i := 0; i+8 <= len(b) && streams < maxStreams; i++ {
		switch b[i] {
		case 0x1f, 0x78, 'B', 'P':
		default:
			continue
		}
		r := stream(b[i:])
		if r == nil {
			continue
		}
		streams++
		out, _ := io.ReadAll(io.LimitReader(r, maxInflate))
		if len(out) > 0 && !yield(out) {
			return
		}
	}
}

func stream(b []byte) io.Reader {
	switch {
	case b[0] == 0x1f && b[1] == 0x8b && b[2] == 8:
		if r, err := gzip.NewReader(bytes.NewReader(b)); err == nil {
			return r
		}
	case b[0] == 0x78 && (int(b[0])<<8|int(b[1]))%31 == 0:
		if r, err := zlib.NewReader(bytes.NewReader(b)); err == nil {
			return r
		}
	case bytes.HasPrefix(b, []byte("BZh")):
		return bzip2.NewReader(bytes.NewReader(b))
	case bytes.HasPrefix(b, []byte("PK\x03\x04")) && len(b) > 30 && b[8] == 8: // method: deflate
		skip := 30 + int(binary.LittleEndian.Uint16(b[26:])) + int(binary.LittleEndian.Uint16(b[28:]))
		if skip < len(b) {
			return flate.NewReader(bytes.NewReader(b[skip:]))
		}
	}
	return nil
}

// unhex decodes runs of hex digits, from both alignments.
func unhex(b []byte, yield func([]byte) bool) { runs(b, &hexDigits, 4, yield) }

// unbase32 decodes runs of base32, from every alignment.
func unbase32(b []byte, yield func([]byte) bool) { runs(b, &base32Digits, 5, yield) }

// unbase64 decodes runs of base64, of either alphabet, from every alignment.
func unbase64(b []byte, yield func([]byte) bool) { runs(b, &base64Digits, 6, yield) }

const (
	capitals = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	smalls   = "abcdefghijklmnopqrstuvwxyz"
)

var (
	hexDigits    = digitValues("0123456789abcdef", "0123456789ABCDEF")
	base32Digits = digitValues(capitals+"234567", smalls+"234567")
	base64Digits = digitValues(capitals+smalls+"0123456789+/", capitals+smalls+"0123456789-_")
)

// digitValues returns the value of each byte in any of alphabets, -1 for others.
func digitValues(alphabets ...string) (values [256]int8) {
	for i := range values {
		values[i] = -1
	}
	for _, a := range alphabets {
		for v := range len(a) {
			values[a[v]] = int8(v)
		}
	}
	return values
}

// runs decodes each run of at least minRun digits of bits each, from every
// alignment. Line breaks inside a run are skipped.
func runs(b []byte, values *[256]int8, bits int, yield func([]byte) bool) {
	group := map[int]int{4: 2, 5: 8, 6: 4}[bits] // digits that make whole bytes
	var digits []byte
	flush := func() bool {
		if len(digits) >= minRun {
			for off := range group {
				if !yield(pack(digits[off:], bits)) {
					return false
				}
			}
		}
		digits = digits[:0]
		return true
	}
	for _, c := range b {
		if c == '\n' || c == '\r' {
			continue
		}
		if v := values[c]; v >= 0 {
			digits = append(digits, byte(v))
		} else if !flush() {
			return
		}
	}
	flush()
}

// pack joins digits of bits each to bytes, and drops what is left over.
func pack(digits []byte, bits int) []byte {
	out := make([]byte, 0, len(digits)*bits/8)
	acc, n := uint(0), 0
	for _, d := range digits {
		acc, n = acc<<bits|uint(d), n+bits
		if n >= 8 {
			n -= 8
			out = append(out, byte(acc>>n))
			acc &= 1<<n - 1
		}
	}
	return out
}

func alnum(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}
