package planetest_test

import (
	"strings"
	"testing"

	"github.com/enclave-run/enclave"
)

// An id that no event of the stream has is either none, which is refused, or
// says that the client has more than there is, which shows it the end alone.
func TestStreamFromAForgedID(t *testing.T) {
	p := open(t, t.TempDir())
	c := client(p)
	h, err := c.Run(t.Context(), enclave.SessionRequest{Code: `print("hello")`})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Result(t.Context()); err != nil {
		t.Fatal(err)
	}
	path := "/v1/sessions/" + h.ID() + "/stream"
	for id, want := range map[string]int{
		"garbage": 400, "p1": 400, "-1": 400, "p1.o1.e1.a1.r2": 400, "p1.o1.e1.a1.r0 ": 200, "": 400,
		"p9.o999999.e999999.a999999.r1": 200, "p2147483647.o9223372036854775807.e9223372036854775807.a9223372036854775807.r1": 200,
	} {
		resp, text := ask(t, p, "GET", path, p.Key, "", "Last-Event-ID", id)
		if resp.StatusCode != want {
			t.Errorf("%q: %s %s", id, resp.Status, text)
		}
		if want == 200 && strings.HasPrefix(id, "p9") && (strings.Count(text, "event: ") != 1 || !strings.Contains(text, "event: end")) {
			t.Errorf("%q: %s", id, text)
		}
	}
}

// A hundred clients that follow an output of 9 MB and stop reading cost the
// server a small part of it each: nothing is queued for them.
func TestSlowReadersHoldNoMemory(t *testing.T) {
	holdNoMemory(t, 100, "/stream")
}
