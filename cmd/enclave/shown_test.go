package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/server"
	"github.com/enclave-run/enclave/internal/statedir"
)

// A sandbox that the platform lost says nothing of the code: its operator reads why.
func TestALostSandboxSaysWhereWhyIs(t *testing.T) {
	for reason, of := range map[string]map[string]*server.Link{
		"backend_lost": {
			"killed: backend_lost: the platform lost the sandbox; why is in /state/run/embedded.log": {About: server.Greeting{Mode: statedir.ModeEmbedded}, Logged: "/state/run/embedded.log"},
			"killed: backend_lost: the platform lost the sandbox; why is in the control plane's log": {About: server.Greeting{Mode: statedir.ModeServe}, Logged: "/state/run/embedded.log"},
		},
		"pids_exceeded": {"killed: pids_exceeded": {}},
	} {
		for want, k := range of {
			err := verdict(enclave.Session{Outcome: enclave.Killed, KillReason: reason}, k.Log())
			var e *exit
			if !errors.As(err, &e) || e.code != statusKilled || e.Error() != want {
				t.Errorf("%s ends with %v, want %s", reason, err, want)
			}
		}
	}
}

// What shows a session or its record says what its isolation is worth.
func TestWeakIsolationIsSaidOfSessionsAndRecords(t *testing.T) {
	for isolation, want := range map[string]string{
		"shared_kernel": "(not a security boundary)", "emulated": "(for development and tests)", "userspace_kernel": "", "microvm": "",
	} {
		s := enclave.Session{ID: "s-00aa11-1", Phase: enclave.Running, Backend: "kernel", Isolation: isolation, Labels: map[string]string{}}
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			var v any = s
			switch {
			case r.URL.Path == "/v1/sessions":
				v = enclave.Page[enclave.Session]{Items: []enclave.Session{s}}
			case strings.HasSuffix(r.URL.Path, "/audit"):
				data, _ := json.Marshal(enclave.EventData{Backend: "kernel", Isolation: isolation})
				v = enclave.Page[enclave.Event]{Items: []enclave.Event{{Session: s.ID, Seq: 2, Type: "sandbox_started", Data: data}}}
			}
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(v)
		}))
		t.Cleanup(server.Close)
		for _, args := range [][]string{{"session", "list"}, {"session", "show", s.ID}, {"audit", "show", s.ID}} {
			var out, errs bytes.Buffer
			p := newProgram()
			p.out, p.err = &out, &errs
			p.env = func(name string) string {
				return map[string]string{"ENCLAVE_BASE_URL": server.URL, "ENCLAVE_API_KEY": "ek_00_00"}[name]
			}
			if code := p.main(args); code != 0 {
				t.Fatalf("%v: %d, %s", args, code, errs.Bytes())
			}
			if !strings.Contains(out.String(), "kernel") || want != "" && !strings.Contains(out.String(), want) || want == "" && strings.Contains(out.String(), "(") {
				t.Errorf("%v of %s does not say %q:\n%s", args, isolation, want, out.Bytes())
			}
		}
	}
}
