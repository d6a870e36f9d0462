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

	"github.com/enclave-run/enclave/internal/jsontext"
	"github.com/enclave-run/enclave/internal/strictjson"
)

const (
	// maxBody is the most that a request's body may have: 10 MiB of code and 10
	// MiB of files, and what JSON adds to ordinary text.
	maxBody = 24 << 20
	// maxMembers bounds what one object or array costs in memory, which for the
	// smallest members is many times their size on the wire.
	maxMembers = 10_000
)

// readBody decodes the body of r, which org sent, into v, a pointer to a struct.
// Whatever it returns, leave must be called when the request was answered: a
// large one keeps its organisation's lane until then.
func (s *Server) readBody(w http.ResponseWriter, r *http.Request, org string, v any) (leave func(), err error) {
	b, err := bodyOf(w, r)
	if err != nil {
		return func() {}, err
	}
	if len(b) < largeBody {
		return func() {}, decode(b, v)
	}
	if leave, err = s.lanes.enter(r.Context(), org); err != nil {
		return func() {}, err
	}
	return leave, decode(b, v)
}

// bodyOf returns the JSON text that r has.
func bodyOf(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if t, params, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" ||
		params["charset"] != "" && !strings.EqualFold(params["charset"], "utf-8") {
		return nil, refuse("invalid_json", "", "the Content-Type must be application/json")
	}
	// A compressed body would have a size that nobody has capped.
	if e := r.Header.Get("Content-Encoding"); e != "" && e != "identity" {
		return nil, refuse("invalid_json", "", "the body must not be compressed")
	}
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		if errors.Is(err, errBodies) {
			w.Header().Set("Connection", "close") // the rest of the body is not read
			return nil, errBodies
		}
		// The rest of this connection, if there is one, is not a request.
		w.Header().Set("Connection", "close")
		if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
			return nil, refuse("body_too_large", "", "the body has more than %d bytes", tooLarge.Limit)
		}
		return nil, refuse("invalid_json", "", "the body ended early")
	}
	return b, nil
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
	s := scanner{strictjson.NewScanner(b)}
	err := s.value(reflect.TypeOf(v).Elem(), "")
	if err == nil {
		err = s.End()
	}
	if bad := (*strictjson.SyntaxError)(nil); errors.As(err, &bad) {
		return refuse("invalid_json", "", "%s at byte %d of the body", bad.What, bad.At)
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return refuse("invalid_json", "", "the body is not what was expected: %v", err)
	}
	return nil
}

// A scanner walks a JSON text beside the Go type that it is for.
type scanner struct{ *strictjson.Scanner }

// value consumes one value, which must be of type t. path is its name.
func (s scanner) value(t reflect.Type, path string) error {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	kind := t.Kind()
	switch c := s.Peek(); {
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
		if err := s.SkipText(); err != nil {
			return err
		}
		if kind != reflect.String {
			return mismatch(path, kind)
		}
		return nil
	case c == '-' || c >= '0' && c <= '9':
		n, err := s.Number()
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
		if s.Word(word) {
			switch {
			case word == "null":
				return refuse("invalid_request", path, "is null; leave it out for the default")
			case kind != reflect.Bool:
				return mismatch(path, kind)
			}
			return nil
		}
	}
	return s.None()
}

func (s scanner) object(t reflect.Type, path string) error {
	s.Skip() // {
	seen := make(map[string]bool)
	for first := true; ; first = false {
		if s.Peek() == '}' && first {
			s.Skip()
			return nil
		}
		if s.Peek() != '"' {
			return s.Syntax("no field name")
		}
		key, err := s.Text()
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
		if s.Peek() != ':' {
			return s.Syntax("no colon")
		}
		s.Skip()
		if err := s.value(of, name); err != nil {
			return err
		}
		switch s.Peek() {
		case ',':
			s.Skip()
		case '}':
			s.Skip()
			return nil
		default:
			return s.Syntax("no comma")
		}
	}
}

func (s scanner) array(t reflect.Type, path string) error {
	s.Skip() // [
	for i := 0; ; i++ {
		if s.Peek() == ']' && i == 0 {
			s.Skip()
			return nil
		}
		if i == maxMembers {
			return refuse("invalid_request", path, "has more than %d members", maxMembers)
		}
		if err := s.value(t.Elem(), fmt.Sprintf("%s[%d]", path, i)); err != nil {
			return err
		}
		switch s.Peek() {
		case ',':
			s.Skip()
		case ']':
			s.Skip()
			return nil
		default:
			return s.Syntax("no comma")
		}
	}
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
		reflect.String: "a string", reflect.Int64: "an integer", reflect.Bool: "true or false", reflect.Slice: "an array",
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
