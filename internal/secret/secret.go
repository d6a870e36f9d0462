// Package secret keeps credentials away from everyone but the request that
// needs them. Nothing outside it can read a secret: a Vault holds them, and a
// Scanner says only whether bytes contain one.
package secret

import (
	"fmt"
	"io"
	"log/slog"
)

// A Value is a secret. It prints, logs and marshals as "[secret]", and no
// exported method returns it. The zero Value is the empty secret. Two Values
// cannot be compared, so nobody can guess at one.
//
// The bytes are in a closure because fmt calls no methods on unexported
// fields: it would print a []byte there, and with %s even what a pointer
// points at. It can't print what a func captures.
type Value struct{ reveal func() string }

const redacted = "[secret]"

// New returns s as a Value.
func New(s string) Value { return Value{func() string { return s }} }

// Format writes the redacted form for every verb and flag.
func (Value) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// String, GoString and the methods below are for those who do not go through
// Format: string building, slog, and the encoders of the standard library.
func (Value) String() string               { return redacted }
func (Value) GoString() string             { return redacted }
func (Value) LogValue() slog.Value         { return slog.StringValue(redacted) }
func (Value) MarshalText() ([]byte, error) { return []byte(redacted), nil }
func (Value) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }
func (Value) GobEncode() ([]byte, error)   { return []byte(redacted), nil }

// bytes returns the secret. It stays unexported: what may see one is in this
// package.
func (v Value) bytes() []byte {
	if v.reveal == nil {
		return nil
	}
	return []byte(v.reveal())
}
