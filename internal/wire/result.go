package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"
)

// Why a result is refused.
var (
	ErrResultTooLarge = fmt.Errorf("the result is larger than %d bytes", MaxResult)
	ErrResultNotJSON  = errors.New("the result is not valid JSON")
	ErrResultTooDeep  = fmt.Errorf("the result is nested deeper than %d", MaxDepth)
)

// CheckResult returns nil if b can be a result: one JSON value (RFC 8259, so
// neither NaN nor Infinity) in UTF-8, of at most MaxResult bytes, nested at most
// MaxDepth deep. The guest refuses what is not before it acknowledges it, and
// the core what a hostile guest sends all the same.
func CheckResult(b []byte) error {
	if len(b) > MaxResult {
		return ErrResultTooLarge
	}
	// encoding/json replaces invalid UTF-8 silently.
	if !utf8.Valid(b) || !json.Valid(b) {
		return ErrResultNotJSON
	}
	if depth(b) > MaxDepth {
		return ErrResultTooDeep
	}
	return nil
}

// depth returns how deep b, which is valid JSON, is nested.
func depth(b []byte) int {
	d, deepest, quoted := 0, 0, false
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '[' || c == '{':
			d++
			deepest = max(deepest, d)
		case c == ']' || c == '}':
			d--
		}
	}
	return deepest
}
