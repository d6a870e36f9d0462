package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// A line is an event as a line of an exported log has it. Its slices are parts
// of the line.
type line struct {
	session []byte
	seq     uint64
	typ     Type
	sealed  []byte // the canonical JSON up to the hash, which closing follows
	hash    [32]byte
	data    *Data // only of a rotation
}

// closing ends the canonical form of an event behind its empty hash.
const closing = `"}`

// parseLine decodes one event in canonical form, and no other bytes.
//
// Nearly all lines are spelled in a way that can be told from the bytes at once;
// decoding the others and encoding them again costs ten times as much.
func parseLine(b []byte) (l line, err error) {
	if l.plain(b) {
		return l, nil
	}
	var e Event
	if err := Strict(b, &e); err != nil {
		return line{}, fmt.Errorf("not an event: %w", err)
	}
	again, err := json.Marshal(e)
	if err != nil {
		return line{}, fmt.Errorf("not an event: %w", err)
	}
	if !bytes.Equal(again, b) {
		return line{}, errors.New("not in canonical form")
	}
	switch {
	case e.Session == "":
		return line{}, errors.New("names no session")
	case e.Time.Location() != time.UTC || !e.Time.Equal(e.Time.Truncate(time.Microsecond)):
		return line{}, errors.New("its time is not in whole microseconds UTC")
	case !e.Type.Known():
		return line{}, fmt.Errorf("unknown type %q", e.Type)
	case len(e.Hash) != hex.EncodedLen(len(l.hash)):
		return line{}, errors.New("its hash is malformed")
	}
	l = line{session: []byte(e.Session), seq: e.Seq, typ: e.Type, sealed: b[:len(b)-len(e.Hash)-len(closing)]}
	if !unhex(l.hash[:], []byte(e.Hash)) {
		return line{}, errors.New("its hash is malformed")
	}
	if e.Type == KeyRotated {
		l.data = &e.Data
	}
	return l, nil
}

// digest is the hash that the event has as the successor of one with hash prev.
// scratch is overwritten and returned for the next.
func (l *line) digest(prev [32]byte, scratch []byte) ([32]byte, []byte) {
	b := append(scratch[:0], eventDomain...)
	b = append(b, prev[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(len(l.sealed)+len(closing)))
	b = append(b, l.sealed...)
	b = append(b, closing...)
	return sha256.Sum256(b), b
}

// leaf is what Leaf returns for the event.
func (l *line) leaf(scratch []byte) (tlog.Hash, []byte) {
	b := append(scratch[:0], 0) // RFC 6962, section 2.1: a leaf
	b = append(b, leafDomain...)
	b = append(b, l.hash[:]...)
	b = binary.BigEndian.AppendUint64(b, l.seq)
	b = append(b, l.session...)
	return sha256.Sum256(b), b
}

// plain decodes b if it is an event in canonical form that needs no escape, no
// exponent and no long number, and is no rotation. It reports false for any
// other: those are for encoding/json to judge.
func (l *line) plain(b []byte) bool {
	c := cursor{b}
	ok := c.skip(`{"session":`)
	session, ok1 := c.text()
	ok2 := c.skip(`,"seq":`)
	seq, ok3 := c.number()
	ok4 := c.skip(`,"ts":`)
	ts, ok5 := c.text()
	ok6 := c.skip(`,"type":`)
	name, ok7 := c.text()
	if !ok || !ok1 || !ok2 || !ok3 || !ok4 || !ok5 || !ok6 || !ok7 || len(session) == 0 || !c.skip(`,"data":`) || !c.data() || !c.skip(`,"hash":"`) {
		return false
	}
	seqN, err := strconv.ParseUint(string(seq), 10, 63)
	if err != nil || !canonicalTime(ts) {
		return false
	}
	i := slices.IndexFunc(plainTypes, func(t Type) bool { return string(t) == string(name) })
	if i < 0 {
		return false
	}
	rest := c.b
	if len(rest) != hex.EncodedLen(len(l.hash))+len(closing) || string(rest[len(rest)-len(closing):]) != closing {
		return false
	}
	if !unhex(l.hash[:], rest[:len(rest)-len(closing)]) {
		return false
	}
	l.session, l.seq, l.typ, l.sealed, l.data = session, seqN, plainTypes[i], b[:len(b)-len(rest)], nil
	return true
}

// plainTypes are all but KeyRotated.
var plainTypes = []Type{EgressDenied, EgressAllowed, SessionCreated, SandboxStarted, SessionResumed, ResultCollected,
	WorkloadExited, UsageMetered, SessionTornDown, LimitExceeded}

// canonicalTime reports whether b is a time as Seal makes and encoding/json
// writes it.
func canonicalTime(b []byte) bool {
	t, err := time.Parse(time.RFC3339Nano, string(b))
	if err != nil || t.Nanosecond()%1000 != 0 || len(b) == 0 || b[len(b)-1] != 'Z' {
		return false
	}
	var again [40]byte
	return string(t.AppendFormat(again[:0], time.RFC3339Nano)) == string(b)
}

// unhex decodes lower-case hex of exactly len(dst) bytes.
func unhex(dst, src []byte) bool {
	if len(src) != 2*len(dst) {
		return false
	}
	for _, c := range src {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	_, err := hex.Decode(dst, src)
	return err == nil
}

// A kind says how the JSON of a field of Data is spelled. A field that is left
// out when it is zero is never spelled as zero.
type kind int

const (
	textKind kind = iota + 1 // a string that is not empty
	uint16Kind
	uint64Kind
	int64Kind
	trueKind
	anyIntKind   // a pointer: zero counts
	anyFloatKind // a pointer
	unknownKind  // an Unknown
)

// dataFields are the fields of Data in their order. A test compares it with Data.
var dataFields = []struct {
	name string
	kind kind
}{
	{"caller", textKind}, {"language", textKind}, {"requestHash", textKind}, {"policyDigest", textKind},
	{"backend", textKind}, {"isolation", textKind}, {"image", textKind}, {"modelled", trueKind},
	{"host", textKind}, {"port", uint16Kind}, {"protocol", textKind}, {"reason", textKind}, {"rule", textKind}, {"binding", textKind}, {"count", uint64Kind},
	{"unknown", unknownKind},
	{"resource", textKind}, {"limit", int64Kind}, {"observed", int64Kind}, {"evidence", textKind}, {"source", textKind},
	{"resultBytes", anyIntKind}, {"outputBytes", anyIntKind}, {"truncated", trueKind}, {"refused", uint64Kind}, {"repeated", uint64Kind},
	{"outcome", textKind}, {"killReason", textKind}, {"exitCode", anyIntKind},
	{"cpuSeconds", anyFloatKind}, {"wallSeconds", anyFloatKind}, {"peakMemoryBytes", anyIntKind}, {"bytesIn", anyIntKind}, {"bytesOut", anyIntKind},
	{"oldKey", textKind}, {"newKey", textKind}, {"oldSignature", textKind}, {"newSignature", textKind},
}

// A cursor reads canonical JSON from the front of b. Its methods report false
// for what they are not sure of.
type cursor struct{ b []byte }

func (c *cursor) skip(s string) bool {
	if len(c.b) < len(s) || string(c.b[:len(s)]) != s {
		return false
	}
	c.b = c.b[len(s):]
	return true
}

// text reads a string without any character that encoding/json could spell in
// another way.
func (c *cursor) text() ([]byte, bool) {
	if len(c.b) == 0 || c.b[0] != '"' {
		return nil, false
	}
	for i := 1; i < len(c.b); i++ {
		switch ch := c.b[i]; {
		case ch == '"':
			s := c.b[1:i]
			c.b = c.b[i+1:]
			return s, true
		case ch < ' ' || ch > '~' || ch == '\\' || ch == '<' || ch == '>' || ch == '&':
			return nil, false
		}
	}
	return nil, false
}

// number reads an integer of at most 18 digits, without a sign.
func (c *cursor) number() ([]byte, bool) {
	i := 0
	for i < len(c.b) && c.b[i] >= '0' && c.b[i] <= '9' {
		i++
	}
	if i == 0 || i > 18 || i > 1 && c.b[0] == '0' {
		return nil, false
	}
	n := c.b[:i]
	c.b = c.b[i:]
	return n, true
}

// data reads an object that encodes a Data.
func (c *cursor) data() bool {
	if !c.skip("{") {
		return false
	}
	if c.skip("}") {
		return true
	}
	for next := 0; ; {
		name, ok := c.text()
		if !ok || !c.skip(":") {
			return false
		}
		for next < len(dataFields) && dataFields[next].name != string(name) {
			next++
		}
		if next == len(dataFields) || !c.value(dataFields[next].kind) {
			return false
		}
		next++
		if c.skip("}") {
			return true
		}
		if !c.skip(",") {
			return false
		}
	}
}

// value reads the value of a field of kind k.
func (c *cursor) value(k kind) bool {
	switch k {
	case textKind:
		s, ok := c.text()
		return ok && len(s) > 0
	case trueKind:
		return c.skip("true")
	case anyFloatKind:
		return c.fraction()
	case unknownKind:
		return c.unknown()
	}
	n, ok := c.number()
	switch {
	case !ok:
		return false
	case k == anyIntKind:
		return true
	case k == uint16Kind && (len(n) > 5 || len(n) == 5 && string(n) > "65535"):
		return false
	}
	return n[0] != '0'
}

// unknown reads an Unknown: its names in their order.
func (c *cursor) unknown() bool {
	if !c.skip("[") {
		return false
	}
	for i, first := 0, true; !c.skip("]"); first = false {
		if !first && !c.skip(",") {
			return false
		}
		name, ok := c.text()
		for i < len(unknownNames) && unknownNames[i].name != string(name) {
			i++
		}
		if !ok || i == len(unknownNames) {
			return false
		}
		i++
	}
	return true
}

// fraction reads a number of at most 15 digits. Such a one survives a float64,
// and encoding/json spells it without an exponent from a millionth up.
func (c *cursor) fraction() bool {
	whole, ok := c.number()
	if !ok {
		return false
	}
	if !c.skip(".") {
		return len(whole) <= 15 && !c.exponent()
	}
	i := 0
	for i < len(c.b) && c.b[i] >= '0' && c.b[i] <= '9' {
		i++
	}
	digits := c.b[:i]
	c.b = c.b[i:]
	if i == 0 || digits[i-1] == '0' || len(whole)+i > 15 || c.exponent() {
		return false
	}
	return whole[0] != '0' || len(bytes.TrimLeft(digits, "0")) > i-6
}

func (c *cursor) exponent() bool { return len(c.b) > 0 && (c.b[0] == 'e' || c.b[0] == 'E') }
