package enclave

import (
	"encoding/json"
	"strings"
	"testing"
)

// A session that may write 100 MB, which no control plane allows more of unless
// its operator says so, must not have a Result that the Client refuses to read:
// that would make a failure of its success.
func TestLargestResultCanBeRead(t *testing.T) {
	const ceiling, sample = 100_000_000, 10_000
	worst, err := json.Marshal(Result{Stdout: strings.Repeat("\x00", sample), StdoutBase64: make([]byte, sample), JSON: json.RawMessage("null")})
	if err != nil {
		t.Fatal(err)
	}
	if size := len(worst) * (ceiling / sample); size > maxResponse {
		t.Errorf("a Result may have %d bytes, and %d are read", size, maxResponse)
	}
}
