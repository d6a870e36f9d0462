package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/enclave-run/enclave/internal/jsontext"
)

const (
	// maxBody is the most that a request's body may have: 10 MiB of code and 10
	// MiB of files, and what JSON adds to ordinary text.
	maxBody = 24 << 20
	// maxMembers bounds what one object or array costs in memory, which for the
	// smallest members is many times their size on the wire.
	maxMembers = 10_000
)

// readBody decodes the body of r into v, a pointer to a struct.
func readBody(w http.ResponseWriter, r *http.Request, v any) error {
	if t, params, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" ||
		params["charset"] != "" && !strings.EqualFold(params["charset"], "utf-8") {
		return refuse("invalid_json", "", "the Content-Type must be application/json")
	}
	// A compressed body would have a size that nobody has capped.
	if e := r.Header.Get("Content-Encoding"); e != "" && e != "identity" {
		return refuse("invalid_json", "", "the body must not be compressed")
	}
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		if errors.Is(err, errBodies) {
			w.Header().Set("Connection", "close") // the rest of the body is not read
			return errBodies
		}
		// The rest of this connection, if there is one, is not a request.
		w.Header().Set("Connection", "close")
		if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
			return refuse("body_too_large", "", "the body has more than %d bytes", tooLarge.Limit)
		}
		return refuse("invalid_json", "", "the body ended early")
	}
	return decode(b, v)
}

// decode fills v, a pointer to a struct, from the JSON text b. It understands
// exactly what every other parser would: what encoding/json tolerates and others
// read differently is refused. That is an unknown field, a field of another
// case, a field given twice (RFC 8259, section 4, leaves open which one counts),
// null, invalid UTF-8, half a surrogate pair, data after the value, and members
// beyond number. An ignored "egres" would be a policy that was not applied.
//
// Depth needs no cap: what is nested deeper than its type is refused there.
func decode(b []byte, v any) error {
	s := scanner{data: b}
	if err := s.value(reflect.TypeOf(v).Elem(), ""); err != nil {
		return err
	}
	if s.space(); s.pos != len(b) {
		return s.syntax("data after the value")
	}
	if err := json.Unmarshal(b, v); err != nil {
		return refuse("invalid_json", "", "the body is not what was expected: %v", err)
	}
	return nil
}

// A scanner walks a JSON text beside the Go type that it is for.
type scanner struct {
	data []byte
	pos  int
}

func (s *scanner) syntax(what string) error {
	return refuse("invalid_json", "", "%s at byte %d of the body", what, s.pos)
}

func (s *scanner) space() {
	for s.pos < len(s.data) && strings.IndexByte(" \t\r\n", s.data[s.pos]) >= 0 {
		s.pos++
	}
}

// peek returns the next byte that is not space, or 0 at the end.
func (s *scanner) peek() byte {
	if s.space(); s.pos < len(s.data) {
		return s.data[s.pos]
	}
	return 0
}

// value consumes one value, which must be of type t. path is its name.
func (s *scanner) value(t reflect.Type, path string) error {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	kind := t.Kind()
	switch c := s.peek(); {
	case c == '{':
		if kind != reflect.Struct && kind != reflect.Map {
			return mismatch(path, kind)
		}
		return s.object(t, path)
	case c == '[':
		if kind != reflect.Slice {
			return mismatch(path, kind)
		}
		return s.array(t, path)
	case c == '"':
		if _, err := s.str(); err != nil {
			return err
		}
		if kind != reflect.String {
			return mismatch(path, kind)
		}
		return nil
	case c == '-' || c >= '0' && c <= '9':
		n, err := s.number()
		if err != nil {
			return err
		}
		if kind != reflect.Int64 {
			return mismatch(path, kind)
		}
		if _, err := strconv.ParseInt(n, 10, 64); err != nil {
			return mismatch(path, kind)
		}
		return nil
	}
	for _, word := range []string{"true", "false", "null"} {
		if bytes.HasPrefix(s.data[s.pos:], []byte(word)) {
			s.pos += len(word)
			if word == "null" {
				return refuse("invalid_request", path, "is null; leave it out for the default")
			}
			return mismatch(path, kind)
		}
	}
	if s.pos == len(s.data) {
		return s.syntax("the text ends early")
	}
	return s.syntax("no JSON value")
}

func (s *scanner) object(t reflect.Type, path string) error {
	s.pos++ // {
	seen := make(map[string]bool)
	for first := true; ; first = false {
		if s.peek() == '}' && first {
			s.pos++
			return nil
		}
		if s.peek() != '"' {
			return s.syntax("no field name")
		}
		key, err := s.str()
		if err != nil {
			return err
		}
		name := join(path, key)
		if seen[key] {
			return refuse("invalid_request", name, "is given twice")
		}
		if seen[key] = true; len(seen) > maxMembers {
			return refuse("invalid_request", path, "has more than %d members", maxMembers)
		}
		of := field(t, key)
		if of == nil {
			return refuse("invalid_request", name, "is not a field")
		}
		if s.peek() != ':' {
			return s.syntax("no colon")
		}
		s.pos++
		if err := s.value(of, name); err != nil {
			return err
		}
		switch s.peek() {
		case ',':
			s.pos++
		case '}':
			s.pos++
			return nil
		default:
			return s.syntax("no comma")
		}
	}
}

func (s *scanner) array(t reflect.Type, path string) error {
	s.pos++ // [
	for i := 0; ; i++ {
		if s.peek() == ']' && i == 0 {
			s.pos++
			return nil
		}
		if i == maxMembers {
			return refuse("invalid_request", path, "has more than %d members", maxMembers)
		}
		if err := s.value(t.Elem(), fmt.Sprintf("%s[%d]", path, i)); err != nil {
			return err
		}
		switch s.peek() {
		case ',':
			s.pos++
		case ']':
			s.pos++
			return nil
		default:
			return s.syntax("no comma")
		}
	}
}

// str consumes a string and returns what it says.
func (s *scanner) str() (string, error) {
	s.pos++ // "
	start := s.pos
	var b []byte // what has been read, once there was an escape
	for s.pos < len(s.data) {
		switch c := s.data[s.pos]; {
		case c == '"':
			text := s.data[start:s.pos]
			s.pos++
			return string(append(b, text...)), nil
		case c < ' ':
			return "", s.syntax("control character in a string")
		case c == '\\':
			b = append(b, s.data[start:s.pos]...)
			r, err := s.escape()
			if err != nil {
				return "", err
			}
			b = utf8.AppendRune(b, r)
			start = s.pos
		case c < utf8.RuneSelf:
			s.pos++
		default:
			r, n := utf8.DecodeRune(s.data[s.pos:])
			if r == utf8.RuneError && n == 1 {
				return "", s.syntax("invalid UTF-8")
			}
			s.pos += n
		}
	}
	return "", s.syntax("the text ends early")
}

// escape consumes a backslash and what belongs to it.
func (s *scanner) escape() (rune, error) {
	if s.pos+1 >= len(s.data) {
		return 0, s.syntax("the text ends early")
	}
	c := s.data[s.pos+1]
	if i := strings.IndexByte(`"\/bfnrt`, c); i >= 0 {
		s.pos += 2
		return rune("\"\\/\b\f\n\r\t"[i]), nil
	}
	u, ok := s.hex(s.pos)
	if !ok {
		return 0, s.syntax("unknown escape")
	}
	switch {
	case u >= 0xDC00 && u < 0xE000:
		return 0, s.syntax("half a surrogate pair")
	case u >= 0xD800 && u < 0xDC00:
		low, ok := s.hex(s.pos + 6)
		if !ok || low < 0xDC00 || low >= 0xE000 {
			return 0, s.syntax("half a surrogate pair")
		}
		s.pos += 12
		return (u-0xD800)<<10 | (low - 0xDC00) + 0x10000, nil
	}
	s.pos += 6
	return u, nil
}

// hex returns the code unit of the \u escape at pos, if there is one.
func (s *scanner) hex(pos int) (rune, bool) {
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

// number consumes a number as RFC 8259, section 6, has it.
func (s *scanner) number() (string, error) {
	start := s.pos
	if s.at("-") {
		s.pos++
	}
	if s.at("0") {
		s.pos++
	} else if !s.digits() {
		return "", s.syntax("no digit")
	}
	if s.at(".") {
		if s.pos++; !s.digits() {
			return "", s.syntax("no digit")
		}
	}
	if s.at("eE") {
		if s.pos++; s.at("+-") {
			s.pos++
		}
		if !s.digits() {
			return "", s.syntax("no digit")
		}
	}
	return string(s.data[start:s.pos]), nil
}

func (s *scanner) at(any string) bool {
	return s.pos < len(s.data) && strings.IndexByte(any, s.data[s.pos]) >= 0
}

func (s *scanner) digits() bool {
	start := s.pos
	for s.at("0123456789") {
		s.pos++
	}
	return s.pos > start
}

// field returns the type of the member of t that is called key, or nil.
func field(t reflect.Type, key string) reflect.Type {
	if t.Kind() == reflect.Map {
		return t.Elem()
	}
	for i := range t.NumField() {
		f := t.Field(i)
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name == key && name != "" && name != "-" {
			return f.Type
		}
	}
	return nil
}

// join names a member. What a client calls it is shown, but not all of it.
func join(path, key string) string {
	const most = 64
	if len(key) > most {
		key = strings.ToValidUTF8(key[:most], "") + "…"
	}
	if path == "" {
		return key
	}
	return path + "." + key
}

func mismatch(path string, want reflect.Kind) error {
	if path == "" {
		return refuse("invalid_json", "", "the body must be an object")
	}
	what := map[reflect.Kind]string{
		reflect.String: "a string", reflect.Int64: "an integer", reflect.Slice: "an array",
		reflect.Struct: "an object", reflect.Map: "an object",
	}[want]
	return refuse("invalid_request", path, "must be %s", what)
}

// encode returns the JSON of v as this API writes it: not escaped for HTML,
// which it never is in, but for a terminal, on which it often ends.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return jsontext.Inert(b.Bytes()), nil
}
