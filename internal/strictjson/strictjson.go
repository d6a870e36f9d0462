// Package strictjson reads JSON texts as every parser would: what some tolerate
// and others read differently is refused. That is invalid UTF-8, half a surrogate
// pair, a member given twice (RFC 8259, section 4, leaves open which one counts),
// data after the value, and a number that is none of a double's. It decodes
// nothing, and repairs nothing.
package strictjson

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// A SyntaxError says what was refused, and where.
type SyntaxError struct {
	What string
	At   int // bytes before it
}

func (e *SyntaxError) Error() string { return fmt.Sprintf("%s at byte %d", e.What, e.At) }

// A Scanner walks a JSON text. Its methods return a *SyntaxError.
type Scanner struct {
	data []byte
	pos  int
}

// NewScanner returns a Scanner at the beginning of text.
func NewScanner(text []byte) *Scanner { return &Scanner{data: text} }

// Syntax returns the error that what is at this place.
func (s *Scanner) Syntax(what string) error { return &SyntaxError{what, s.pos} }

// Peek returns the next byte that is not space, or 0 at the end.
func (s *Scanner) Peek() byte {
	for s.pos < len(s.data) && strings.IndexByte(" \t\r\n", s.data[s.pos]) >= 0 {
		s.pos++
	}
	if s.pos < len(s.data) {
		return s.data[s.pos]
	}
	return 0
}

// Skip consumes the byte that Peek returned.
func (s *Scanner) Skip() { s.pos++ }

// Word consumes word, if it is next.
func (s *Scanner) Word(word string) bool {
	if !bytes.HasPrefix(s.data[s.pos:], []byte(word)) {
		return false
	}
	s.pos += len(word)
	return true
}

// End returns an error unless nothing but space is left.
func (s *Scanner) End() error {
	if s.Peek(); s.pos != len(s.data) {
		return s.Syntax("data after the value")
	}
	return nil
}

// None returns the error of a place where a value should begin and none does.
func (s *Scanner) None() error {
	if s.pos == len(s.data) {
		return s.Syntax("the text ends early")
	}
	return s.Syntax("no JSON value")
}

// Text consumes a string, at whose beginning Peek is, and returns what it says.
func (s *Scanner) Text() (string, error) { return s.text(true) }

// SkipText is Text for a caller that does not need what the string says: it
// copies nothing.
func (s *Scanner) SkipText() error {
	_, err := s.text(false)
	return err
}

// text consumes a string, and returns what it says if that is wanted.
func (s *Scanner) text(wanted bool) (string, error) {
	s.pos++ // "
	start := s.pos
	var b []byte // what has been read, once there was an escape
	for s.pos < len(s.data) {
		switch c := s.data[s.pos]; {
		case c == '"':
			text := s.data[start:s.pos]
			s.pos++
			if !wanted {
				return "", nil
			}
			return string(append(b, text...)), nil
		case c < ' ':
			return "", s.Syntax("control character in a string")
		case c == '\\':
			plain := s.data[start:s.pos]
			r, err := s.escape()
			if err != nil {
				return "", err
			}
			if wanted {
				b = utf8.AppendRune(append(b, plain...), r)
			}
			start = s.pos
		case c < utf8.RuneSelf:
			s.pos++
		default:
			r, n := utf8.DecodeRune(s.data[s.pos:])
			if r == utf8.RuneError && n == 1 {
				return "", s.Syntax("invalid UTF-8")
			}
			s.pos += n
		}
	}
	return "", s.Syntax("the text ends early")
}

// escape consumes a backslash and what belongs to it.
func (s *Scanner) escape() (rune, error) {
	if s.pos+1 >= len(s.data) {
		return 0, s.Syntax("the text ends early")
	}
	c := s.data[s.pos+1]
	if i := strings.IndexByte(`"\/bfnrt`, c); i >= 0 {
		s.pos += 2
		return rune("\"\\/\b\f\n\r\t"[i]), nil
	}
	u, ok := s.hex(s.pos)
	if !ok {
		return 0, s.Syntax("unknown escape")
	}
	switch {
	case u >= 0xDC00 && u < 0xE000:
		return 0, s.Syntax("half a surrogate pair")
	case u >= 0xD800 && u < 0xDC00:
		low, ok := s.hex(s.pos + 6)
		if !ok || low < 0xDC00 || low >= 0xE000 {
			return 0, s.Syntax("half a surrogate pair")
		}
		s.pos += 12
		return (u-0xD800)<<10 | (low - 0xDC00) + 0x10000, nil
	}
	s.pos += 6
	return u, nil
}

// hex returns the code unit of the \u escape at pos, if there is one.
func (s *Scanner) hex(pos int) (rune, bool) {
	if pos+6 > len(s.data) || s.data[pos] != '\\' || s.data[pos+1] != 'u' {
		return 0, false
	}
	var r rune
	for _, c := range s.data[pos+2 : pos+6] {
		d := strings.IndexByte("0123456789abcdef", c|0x20)
		if d < 0 || c < '0' {
			return 0, false
		}
		r = r<<4 | rune(d)
	}
	return r, true
}

// Number consumes a number as RFC 8259, section 6, has it, and returns its text.
func (s *Scanner) Number() (string, error) {
	start := s.pos
	if s.at("-") {
		s.pos++
	}
	if s.at("0") {
		s.pos++
	} else if !s.digits() {
		return "", s.Syntax("no digit")
	}
	if s.at(".") {
		if s.pos++; !s.digits() {
			return "", s.Syntax("no digit")
		}
	}
	if s.at("eE") {
		if s.pos++; s.at("+-") {
			s.pos++
		}
		if !s.digits() {
			return "", s.Syntax("no digit")
		}
	}
	return string(s.data[start:s.pos]), nil
}

func (s *Scanner) at(any string) bool {
	return s.pos < len(s.data) && strings.IndexByte(any, s.data[s.pos]) >= 0
}

func (s *Scanner) digits() bool {
	start := s.pos
	for s.at("0123456789") {
		s.pos++
	}
	return s.pos > start
}

// MaxNumber bounds the text of a number in what Check accepts. A double has at
// most 309 digits before its point.
const MaxNumber = 400

// ErrDepth is returned by Check for what is nested deeper than it may be.
var ErrDepth = errors.New("nested too deep")

// Check returns nil if text is one value that is nested at most depth deep, and
// of which each number is a finite double, if not exactly.
func Check(text []byte, depth int) error {
	s := NewScanner(text)
	if err := s.value(depth); err != nil {
		return err
	}
	return s.End()
}

func (s *Scanner) value(depth int) error {
	switch c := s.Peek(); {
	case (c == '{' || c == '[') && depth == 0:
		return ErrDepth
	case c == '{':
		return s.object(depth - 1)
	case c == '[':
		return s.array(depth - 1)
	case c == '"':
		_, err := s.Text()
		return err
	case c == '-' || c >= '0' && c <= '9':
		n, err := s.Number()
		if err != nil {
			return err
		}
		if len(n) > MaxNumber {
			return s.Syntax(fmt.Sprintf("a number of more than %d bytes", MaxNumber))
		}
		if _, err := strconv.ParseFloat(n, 64); err != nil {
			return s.Syntax("a number that is too large")
		}
		return nil
	}
	if s.Word("true") || s.Word("false") || s.Word("null") {
		return nil
	}
	return s.None()
}

func (s *Scanner) object(depth int) error {
	s.Skip()
	if s.Peek() == '}' {
		s.Skip()
		return nil
	}
	seen := make(map[string]bool)
	for {
		if s.Peek() != '"' {
			return s.Syntax("no member's name")
		}
		name, err := s.Text()
		if err != nil {
			return err
		}
		if seen[name] {
			return s.Syntax("a member given twice")
		}
		seen[name] = true
		if s.Peek() != ':' {
			return s.Syntax("no colon")
		}
		s.Skip()
		if err := s.value(depth); err != nil {
			return err
		}
		if more, err := s.next('}'); !more {
			return err
		}
	}
}

func (s *Scanner) array(depth int) error {
	s.Skip()
	if s.Peek() == ']' {
		s.Skip()
		return nil
	}
	for {
		if err := s.value(depth); err != nil {
			return err
		}
		if more, err := s.next(']'); !more {
			return err
		}
	}
}

// next consumes what is between two members, or the end of them.
func (s *Scanner) next(end byte) (more bool, err error) {
	switch s.Peek() {
	case ',':
		s.Skip()
		return true, nil
	case end:
		s.Skip()
		return false, nil
	}
	return false, s.Syntax("no comma")
}
