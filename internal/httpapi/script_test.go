package httpapi

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestScripts sends the requests of testdata/*.txt, byte for byte, and compares
// the answers. A script is a list of cases:
//
//	=== a sentence that says what is shown
//	GET /v1/sessions/s-0a1b2c-7
//	Authorization: Bearer $DEV
//
//	body
//	---
//	200
//	Header: that the answer must have
//
//	the body that it must have
//
// Host, Connection and Content-Length are added where they are missing; $NAME
// is the key of that name. An empty body in the expectation says nothing of the
// body, "(empty)" that there is none.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		cases := strings.Split(string(b), "=== ")[1:]
		if len(cases) < 5 {
			t.Errorf("%s has %d cases", file, len(cases))
		}
		for _, c := range cases {
			name, rest, _ := strings.Cut(c, "\n")
			t.Run(filepath.Base(file)+"/"+name, func(t *testing.T) {
				ask, want, ok := strings.Cut(rest, "\n---\n")
				if !ok {
					t.Fatal("no expectation")
				}
				r := newRig(t)
				check(t, exchange(t, r, ask), want)
			})
		}
	}
}

// exchange writes a request as a script has it and returns the answer.
func exchange(t *testing.T, r *rig, ask string) *http.Response {
	t.Helper()
	for name, key := range r.key {
		ask = strings.ReplaceAll(ask, "$"+name, key)
	}
	head, body, _ := strings.Cut(ask+"\n", "\n\n")
	body = strings.TrimSuffix(body, "\n")
	lines := strings.Split(strings.TrimSuffix(head, "\n"), "\n")
	lines[0] += " HTTP/1.1"
	have := func(name string) bool {
		for _, l := range lines {
			if strings.HasPrefix(strings.ToLower(l), name+":") {
				return true
			}
		}
		return false
	}
	if !have("host") {
		lines = append(lines, "Host: "+r.addr)
	}
	if !have("content-length") && !have("transfer-encoding") && body != "" {
		lines = append(lines, fmt.Sprintf("Content-Length: %d", len(body)))
	}
	lines = append(lines, "Connection: close", "", body)
	c, err := net.Dial("tcp", r.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := io.WriteString(c, strings.Join(lines, "\r\n")); err != nil {
		t.Fatal(err)
	}
	// The end of what is sent, so that a body that is too short is known to be.
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	method, _, _ := strings.Cut(lines[0], " ")
	resp, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: method})
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

func check(t *testing.T, resp *http.Response, want string) {
	t.Helper()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	// A problem ends with the id of its request, which is another each time.
	got := strings.TrimSuffix(string(b), "\n")
	if id := resp.Header.Get("X-Request-Id"); resp.StatusCode >= 400 && strings.HasPrefix(got, `{"type":`) {
		var named bool
		if got, named = strings.CutSuffix(got, `,"requestId":"`+id+`"}`); !named || id == "" {
			t.Errorf("the problem does not name its request %q: %s", id, b)
		}
		got += "}"
	}
	head, body, _ := strings.Cut(want+"\n", "\n\n")
	body = strings.TrimSpace(body)
	lines := strings.Split(strings.TrimSpace(head), "\n")
	if status := fmt.Sprint(resp.StatusCode); status != lines[0] {
		t.Errorf("status %s, want %s; body %s", status, lines[0], got)
	}
	for _, l := range lines[1:] {
		name, value, _ := strings.Cut(l, ": ")
		if have := resp.Header.Get(name); have != value {
			t.Errorf("%s: %q, want %q", name, have, value)
		}
	}
	switch body {
	case "":
	case "(empty)":
		body = ""
		fallthrough
	default:
		if got != body {
			t.Errorf("body\n%s\nwant\n%s", got, body)
		}
	}
	if resp.StatusCode >= 400 && got != "" && resp.Header.Get("Content-Type") != "application/problem+json" &&
		!strings.HasPrefix(got, `{"ready":`) {
		t.Errorf("a refusal of type %q: %s", resp.Header.Get("Content-Type"), got)
	}
	if resp.Header.Get("Access-Control-Allow-Origin") != "" {
		t.Error("a CORS header")
	}
}
