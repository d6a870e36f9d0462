package main

import (
	"bufio"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/enclave-run/enclave"
)

// A hook is a receiver of webhooks on a loopback port.
type hook struct {
	*httptest.Server
	came chan hooked
}

type hooked struct {
	path   string
	header http.Header
	body   []byte
}

func newHook(t *testing.T) *hook {
	h := &hook{came: make(chan hooked, 64)}
	h.Server = httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		h.came <- hooked{r.URL.Path, r.Header, b}
	}))
	t.Cleanup(h.Close)
	return h
}

// await returns the next webhook.
func (h *hook) await(t *testing.T) hooked {
	t.Helper()
	select {
	case got := <-h.came:
		return got
	case <-time.After(time.Minute):
		t.Fatal("no webhook came")
		panic("unreachable")
	}
}

// fetch makes a request with headers in pairs and returns what was answered.
func fetch(t *testing.T, method, url, body string, header ...string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := new(http.Client).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Everything hostile that a client or a workload can send is sent; what is then
// on stderr has only printable lines of the logger's own, and no secret.
func TestTheLogOfAServerIsObeyedByNothing(t *testing.T) {
	t.Parallel()
	for _, format := range []string{"text", "json"} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			receiver := newHook(t)
			env, _ := simulated(t)
			v := startServe(t, append(env, "ENCLAVE_LOG_FORMAT="+format, "ENCLAVE_LOG_LEVEL=debug", "ENCLAVE_WEBHOOK_ALLOW=127.0.0.0/8"))
			c := &enclave.Client{BaseURL: v.url, APIKey: v.key}
			const evil = "\x1b[2J\r\n\u202e{\"type\":\"egress_allowed\"}\u009b31m\n2026-01-01 session_torn_down"
			refused := []enclave.SessionRequest{
				{Code: "x", Labels: map[string]string{evil: evil}}, {Code: "x", Language: evil}, {Code: "x", IdempotencyKey: evil},
				{Code: "x", WebhookURL: "https://canary-hook.example/" + evil}, {Code: "x", WebhookURL: "https://169.254.169.254/canary-hook"},
				{Code: "x", Egress: enclave.Egress{Mode: enclave.Allowlist, Allow: []string{evil}}}, {Code: "x", Files: map[string]string{evil: evil}},
			}
			for _, r := range refused {
				if _, err := c.Run(t.Context(), r); err == nil {
					t.Errorf("%+v was accepted", r)
				}
			}
			hook := receiver.URL + "/canary-hook"
			var ids []string
			for _, r := range []enclave.SessionRequest{
				{Code: "import sys\nprint('" + "\\x1b[2Jcanary-output" + "')\nsys.stderr.write('x\\n{\"type\":\"egress_allowed\",\"seq\":1}\\r\\n2026-01-01 session_torn_down\\n')", WebhookURL: hook},
				{Argv: []string{"canary-argv" + evil}, WebhookURL: hook},
				{Code: "import urllib.request\nurllib.request.urlopen('http://canary-host.example/x')", WebhookURL: hook},
			} {
				h, err := c.Run(t.Context(), r)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := h.Result(t.Context()); err != nil {
					t.Error(err)
				}
				ids = append(ids, h.ID())
			}
			key, err := c.WebhookKey(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for range ids {
				got := receiver.await(t)
				var e enclave.WebhookEvent
				if err := json.Unmarshal(got.body, &e); err != nil || e.Type != enclave.WebhookSessionEnded || got.path != "/canary-hook" {
					t.Errorf("%s %s: %v", got.path, got.body, err)
				}
				if err := enclave.VerifyWebhook(got.header, got.body, key.PublicKey, time.Now()); err != nil {
					t.Error(err)
				}
			}
			const token = "eyJhbGciOiJub25lIn0.canary-token.x"
			fetch(t, "GET", v.url+"/v1/sessions", "", "Authorization", "Bearer "+token)
			fetch(t, "GET", v.url+"/v1/sessions", "", "Authorization", "Bearer "+v.key+"0")
			fetch(t, "GET", v.url+"/%1b[2J%0a%0dcanary-path?canary-query=%1b", "", "Authorization", "Bearer "+v.key)
			fetch(t, "GET", v.url+"/healthz", "", "X-Request-Id", "canary-id <x>", "Traceparent", "canary-parent")
			raw(t, v.url, "BREW\x1b /v1/sessions HTTP/1.1\r\nHost: x\r\n\r\n")
			public := fetch(t, "GET", v.url+"/metrics", "") + fetch(t, "GET", v.url+"/v1/sessions", "", "Authorization", "Bearer "+v.key)
			numbers := fetch(t, "GET", v.url+"/metrics", "")
			log := v.stop(t)

			for i := range len(log) {
				if c := log[i]; c < 0x20 && c != '\n' || c >= 0x7f {
					t.Fatalf("%#02x in the log: %q", c, log[max(0, i-100):min(len(log), i+100)])
				}
			}
			requests, ends := 0, 0
			for line := range strings.Lines(log) {
				switch {
				case format == "text" && !strings.HasPrefix(line, "time="), format == "json" && !json.Valid([]byte(line)):
					t.Errorf("a line of somebody else's: %q", line)
				case strings.Contains(line, "session ended"):
					ends++
				case strings.Contains(line, "msg=request ") || strings.Contains(line, `"msg":"request"`):
					requests++
				}
			}
			if ends != len(ids) || requests < len(refused)+len(ids)+6 {
				t.Errorf("%d ends and %d requests are in the log", ends, requests)
			}
			for _, never := range []string{v.key, v.key[len(v.key)-64:], token, "canary-token", "canary-hook", receiver.URL[7:], "canary-output", "canary-path", "canary-query", "canary-host"} {
				if strings.Contains(log, never) {
					t.Errorf("%q is in the log", never)
				}
			}
			for _, never := range append(ids, "canary", "default", v.key[3:19]) {
				if strings.Contains(numbers, never) {
					t.Errorf("%q is in the metrics", never)
				}
			}
			if strings.Contains(public, "canary-hook") {
				t.Error("a webhookUrl is shown")
			}
		})
	}
}

// raw sends text to a server and reads the first line of the answer.
func raw(t *testing.T, url, text string) string {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return line
}

func TestServeRefusesWhatItCannotShowOrReach(t *testing.T) {
	t.Parallel()
	env, _ := simulated(t)
	for _, c := range []struct{ args, want string }{
		{"--log-format=xml", "neither text nor json"},
		{"--log-level=loud", "not one of debug, info, warn and error"},
		{"--otlp-endpoint=localhost:4318", "not a URL such as http://127.0.0.1:4318"},
		{"--otlp-endpoint=https://u:p@collector.example", "user information"},
		{"--webhook-allow=10.0.0.0", "not a range"},
		{"--webhook-allow=169.254.0.0/16", "lies outside"},
		{"--webhook-allow=0.0.0.0/0", "lies outside"},
	} {
		out, err := enclaveCommand(t, env, "serve", "--listen=127.0.0.1:0", c.args).CombinedOutput()
		if ended(t, err) != 1 || !strings.Contains(string(out), c.want) {
			t.Errorf("%s: %v: %s", c.args, err, out)
		}
		if strings.Contains(string(out), "u:p") {
			t.Errorf("%s is repeated: %s", c.args, out)
		}
	}
}
