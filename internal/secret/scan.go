package secret

import "strings"

// A Scanner searches bytes for secrets. It prints as nothing that could tell
// them, and is safe for concurrent use.
//
// It is a tripwire, not the boundary: the boundary is that no secret is ever
// where it could leak from. It finds what someone writes who tries the usual
// encodings, up to three deep; it does not find encryption.
type Scanner struct {
	// A closure, for the reason that Value has one.
	find func(b []byte) (string, bool)
}

const (
	maxDepth  = 3        // decodings one inside the other
	maxDecode = 32       // decoded bytes for each byte searched, beside minDecode
	minDecode = 4 << 20  // decoded bytes at least
	capDecode = 64 << 20 // decoded bytes at most
)

// NewScanner returns a Scanner for values. An empty Value is found nowhere. Of a
// secret of 24 bytes or more a part is found too, from about half of it or 15
// bytes; but for the header of a JWT, which others share. A secret should have
// no guessable part: that part is found wherever it was guessed.
func NewScanner(values ...Value) *Scanner {
	s := &search{plain: newIndex(), differences: newIndex()}
	for _, v := range values {
		s.add(v.bytes())
	}
	return &Scanner{s.find}
}

// Find reports whether b contains one of the secrets, verbatim or encoded, and
// in what encodings, the outermost first. It never returns any part of a secret
// or of b. What it decodes on the way is bounded by b's length, in the order of
// depth, so that what is hidden behind a bomb may be missed but costs nothing.
func (s *Scanner) Find(b []byte) (encoding string, found bool) {
	if s == nil || s.find == nil {
		return "", false
	}
	return s.find(b)
}

// A search has what the secrets look like in each view of a buffer.
type search struct {
	plain       *index // in lower case, and the same without what isn't a letter or digit
	differences *index // each byte XOR the next, which a constant key leaves alone
}

// add adds the forms of secret.
func (s *search) add(secret []byte) {
	if len(secret) == 0 {
		return
	}
	body := withoutHeader(secret)
	for _, f := range forms(body) {
		s.plain.add(lowered(f.text), f.name)
		if q := squeezed(f.text); len(q) >= minForm {
			s.plain.add(q, f.name)
		}
	}
	if len(body) > minForm {
		s.differences.add(differences(body), "xor")
	}
}

// A buffer is something to search, and how it came out of what was given.
type buffer struct {
	b    []byte
	path []string
}

func (s *search) find(b []byte) (string, bool) {
	budget := min(maxDecode*len(b)+minDecode, capDecode)
	queue := []buffer{{b: b}}
	for len(queue) > 0 {
		buf := queue[0]
		queue = queue[1:]
		if form, ok := s.look(buf.b); ok {
			return strings.Join(append(buf.path, form), " > "), true
		}
		if len(buf.path) == maxDepth {
			continue
		}
		for _, d := range decoders() {
			d.decode(buf.b, func(out []byte) bool {
				if len(out) > budget {
					return false
				}
				if len(out) >= minForm {
					budget -= len(out)
					path := append(buf.path[:len(buf.path):len(buf.path)], d.name)
					queue = append(queue, buffer{out, path})
				}
				return true
			})
		}
	}
	return "", false
}

// look searches the views of b that need no decoding.
func (s *search) look(b []byte) (string, bool) {
	low := lowered(b)
	if f, ok := s.plain.find(low); ok {
		return f, true
	}
	if f, ok := s.plain.find(squeezed(b)); ok {
		return "spaced > " + f, true
	}
	for i := range 2 {
		if f, ok := s.plain.find(everySecond(low, i)); ok {
			return "interleaved > " + f, true
		}
	}
	return s.differences.find(differences(b))
}

// lowered returns b with ASCII letters in lower case.
func lowered(b []byte) []byte {
	out := make([]byte, len(b))
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		out[i] = c
	}
	return out
}

// squeezed returns the letters and digits of b, in lower case. It undoes what
// puts something between them: spaces, line breaks, colons, quotes. It also
// makes the two alphabets of base64 one.
func squeezed(b []byte) []byte {
	out := make([]byte, 0, len(b))
	for _, c := range b {
		switch {
		case 'A' <= c && c <= 'Z':
			out = append(out, c+'a'-'A')
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9':
			out = append(out, c)
		}
	}
	return out
}

// everySecond returns the bytes of b at first, first+2, ...: what was put
// between others, as UTF-16 does with zeros.
func everySecond(b []byte, first int) []byte {
	out := make([]byte, 0, len(b)/2+1)
	for i := first; i < len(b); i += 2 {
		out = append(out, b[i])
	}
	return out
}

// differences returns each byte of b XOR the next.
func differences(b []byte) []byte {
	if len(b) < 2 {
		return nil
	}
	out := make([]byte, len(b)-1)
	for i := range out {
		out[i] = b[i] ^ b[i+1]
	}
	return out
}
