package auth

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// oneMeaning refuses a token whose header or claims have a member twice: RFC
// 8259, section 4, leaves open which of them counts, so that the server and its
// issuer could read two tokens in one. It says nothing else of the token.
func oneMeaning(token string) error {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return errors.New("it has not three parts")
	}
	for _, p := range parts[:2] {
		b, err := base64.RawURLEncoding.Strict().DecodeString(p)
		if err != nil {
			return fmt.Errorf("decode a part: %w", err)
		}
		if err := noTwins(b); err != nil {
			return err
		}
	}
	return nil
}

// noTwins refuses a JSON text that is no object, or in which an object has a
// member twice.
func noTwins(b []byte) error {
	d := json.NewDecoder(bytes.NewReader(b))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return errors.New("a part is not a JSON object")
	}
	if err := members(d, 1); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("a part has data after its object")
	}
	return nil
}

// maxDepth is how deep a token's JSON may be nested.
const maxDepth = 16

// members consumes the members of an object whose brace has been read.
func members(d *json.Decoder, depth int) error {
	if depth > maxDepth {
		return errors.New("a part is nested too deeply")
	}
	seen := map[string]bool{}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return err
		}
		name, ok := t.(string)
		if !ok || seen[name] {
			return errors.New("a part has a member twice")
		}
		seen[name] = true
		if err := value(d, depth); err != nil {
			return err
		}
	}
	_, err := d.Token()
	return err
}

// value consumes one value.
func value(d *json.Decoder, depth int) error {
	t, err := d.Token()
	if err != nil {
		return err
	}
	switch t {
	case json.Delim('{'):
		return members(d, depth+1)
	case json.Delim('['):
		if depth >= maxDepth {
			return errors.New("a part is nested too deeply")
		}
		for d.More() {
			if err := value(d, depth+1); err != nil {
				return err
			}
		}
		_, err := d.Token()
		return err
	}
	return nil
}
