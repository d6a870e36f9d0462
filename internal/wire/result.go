package wire

import (
	"errors"
	"fmt"

	"github.com/enclave-run/enclave/internal/strictjson"
)

// Why a result is refused.
var (
	ErrResultTooLarge = fmt.Errorf("the result is larger than %d bytes", MaxResult)
	ErrResultNotJSON  = errors.New("the result is not valid JSON")
	ErrResultTooDeep  = fmt.Errorf("the result is nested deeper than %d", MaxDepth)
)

// CheckResult returns nil if b can be a result: one JSON value, as strict as a
// request must be, so that whoever reads it reads the same (neither NaN nor 1e999,
// no half of a surrogate pair, no member twice), of at most MaxResult bytes, nested
// at most MaxDepth deep. The guest refuses what is not before it acknowledges it,
// and the core what a hostile guest sends all the same.
func CheckResult(b []byte) error {
	if len(b) > MaxResult {
		return ErrResultTooLarge
	}
	err := strictjson.Check(b, MaxDepth)
	if errors.Is(err, strictjson.ErrDepth) {
		return ErrResultTooDeep
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrResultNotJSON, err)
	}
	return nil
}
