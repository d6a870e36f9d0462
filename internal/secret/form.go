package secret

import (
	"bytes"
	"encoding/base32"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"slices"
)

const (
	minForm = 8  // bytes; of what is shorter the encodings are too short to mean it
	piece   = 12 // bytes of a form that are enough to find it
	step    = 4  // between the pieces that are looked for
	variety = 6  // different bytes in a piece, or it is left out
)

// A form is a secret in an encoding.
type form struct {
	name string
	text []byte
}

// forms returns secret in the encodings that can be searched for without
// decoding, so that they are found inside other text, from any offset.
func forms(secret []byte) []form {
	fs := []form{{"raw", secret}}
	if len(secret) < minForm {
		return fs
	}
	fs = append(fs, form{"rot13", rot13(secret)}, form{"hex", []byte(hex.EncodeToString(secret))})
	for off := range 3 {
		fs = append(fs, form{"base64", inner(base64.RawStdEncoding.EncodeToString, secret, off, 3, 4)})
	}
	for off := range 5 {
		fs = append(fs, form{"base32", inner(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString, secret, off, 5, 8)})
	}
	for _, f := range slices.Clone(fs) {
		back := slices.Clone(f.text)
		slices.Reverse(back)
		fs = append(fs, form{"reversed " + f.name, back})
	}
	return fs
}

// inner returns the part of the encoding of secret, off bytes into a group of
// in bytes that become out characters, that doesn't depend on its neighbours.
func inner(encode func([]byte) string, secret []byte, off, in, out int) []byte {
	padded := append(make([]byte, off), secret...)
	text := []byte(encode(padded))
	first := 0
	if off > 0 {
		first = out
	}
	return text[first : len(padded)/in*out]
}

func rot13(b []byte) []byte {
	out := bytes.Clone(b)
	for i, c := range out {
		switch {
		case 'a' <= c && c <= 'z':
			out[i] = 'a' + (c-'a'+13)%26
		case 'A' <= c && c <= 'Z':
			out[i] = 'A' + (c-'A'+13)%26
		}
	}
	return out
}

// withoutHeader returns secret without the header of a JWT: all tokens of an
// issuer begin with the same one, which is no secret.
func withoutHeader(secret []byte) []byte {
	head, rest, ok := bytes.Cut(secret, []byte("."))
	if ok && bytes.HasPrefix(head, []byte("eyJ")) && len(rest) >= piece {
		return rest
	}
	return secret
}

// An index finds pieces of forms in one pass, whatever their number.
type index struct {
	short   []form            // shorter than a key
	pieces  map[uint64][]form // by their first eight bytes
	present [1 << 12]uint64   // a bit for each hash of a key in pieces
}

func newIndex() *index { return &index{pieces: map[uint64][]form{}} }

// add adds the pieces of text. A text shorter than two pieces is found only
// whole.
func (x *index) add(text []byte, name string) {
	if len(text) < 2*piece {
		x.put(text, name)
		return
	}
	found := false
	for i := 0; i+piece <= len(text); i++ {
		if i%step != 0 && i != len(text)/2 && i != (len(text)+1)/2 && i+piece != len(text) {
			continue
		}
		if p := text[i : i+piece]; varied(p) {
			x.put(p, "part of "+name)
			found = true
		}
	}
	if !found {
		x.put(text, name)
	}
}

func (x *index) put(text []byte, name string) {
	if len(text) < 8 {
		x.short = append(x.short, form{name, text})
		return
	}
	k := binary.LittleEndian.Uint64(text)
	x.pieces[k] = append(x.pieces[k], form{name, text})
	h := hash(k)
	x.present[h/64] |= 1 << (h % 64)
}

// find returns the name of a form of which b has a piece.
func (x *index) find(b []byte) (string, bool) {
	for _, f := range x.short {
		if bytes.Contains(b, f.text) {
			return f.name, true
		}
	}
	for i := 0; i+8 <= len(b); i++ {
		k := binary.LittleEndian.Uint64(b[i:])
		if h := hash(k); x.present[h/64]&(1<<(h%64)) == 0 {
			continue
		}
		for _, f := range x.pieces[k] {
			if bytes.HasPrefix(b[i:], f.text) {
				return f.name, true
			}
		}
	}
	return "", false
}

// hash maps a key to a bit of index.present.
func hash(k uint64) uint64 { return k * 0x9e3779b97f4a7c15 >> (64 - 18) }

// varied reports whether p has enough different bytes not to be found by
// chance: a run of one byte is in many a file.
func varied(p []byte) bool {
	var seen [256]bool
	n := 0
	for _, c := range p {
		if !seen[c] {
			seen[c] = true
			n++
		}
	}
	return n >= variety
}
