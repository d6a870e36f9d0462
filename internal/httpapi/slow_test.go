package httpapi

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// say sends text to a rig whose patience is short, and nothing more, and
// returns all that the server says before it closes the connection.
func say(t *testing.T, r *rig, text string) string {
	t.Helper()
	c, err := net.Dial("tcp", r.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(bufio.NewReader(c)) // ends when the server has had enough
	if err != nil {
		t.Fatalf("%v after %q", err, b)
	}
	return string(b)
}

// Who sends a request slowly holds a connection no longer than the server
// allows for a whole one, whatever of it is missing, and starts nothing.
func TestSlowRequestIsCut(t *testing.T) {
	impatient := func(r *rig) {
		r.http.ReadTimeout, r.http.ReadHeaderTimeout = 100*time.Millisecond, 100*time.Millisecond
	}
	r := newRig(t, impatient)
	head := "POST /v1/sessions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nAuthorization: Bearer " + r.key["DEV"] + "\r\n"
	for name, tc := range map[string]struct{ text, want string }{
		"nothing":                 {"", ""},
		"half a line":             {"POST /v1/ses", ""},
		"half its headers":        {head, ""},
		"half a body":             {head + "Content-Length: 100\r\n\r\n{\"code\":", "HTTP/1.1 400 "},
		"a chunk without the end": {head + "Transfer-Encoding: chunked\r\n\r\n8\r\n{\"code\":\r\n", "HTTP/1.1 400 "},
	} {
		got := say(t, r, tc.text)
		if tc.want == "" && got != "" && !strings.HasPrefix(got, "HTTP/1.1 408 ") && !strings.HasPrefix(got, "HTTP/1.1 400 ") ||
			tc.want != "" && (!strings.HasPrefix(got, tc.want) || !strings.Contains(got, "application/problem+json")) {
			t.Errorf("%s: %q", name, got)
		}
	}
	if made := r.plane.requests(); len(made) != 0 {
		t.Errorf("%d sessions were created", len(made))
	}
	if resp, _ := r.do(t, "GET", "/healthz", "", nil); resp.StatusCode != http.StatusOK {
		t.Error(resp.Status)
	}
}
