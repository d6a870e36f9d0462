package httpapi

import (
	"bytes"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/enclave-run/enclave/internal/request"
)

func BenchmarkLargeBody(b *testing.B) {
	body := []byte(`{"code":"pass\n#` + strings.Repeat("x", 10<<20-6) + `"}`)
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		r := httptest.NewRequest("POST", "/v1/sessions", bytes.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		var q request.Request
		text, err := bodyOf(httptest.NewRecorder(), r)
		if err == nil {
			err = decode(text, &q)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}
