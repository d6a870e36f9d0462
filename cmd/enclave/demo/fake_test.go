package demo

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/enclave-run/enclave"
)

// A fakePlane answers as a control plane that contains everything, and
// misbehaves where it is told to.
type fakePlane struct {
	*httptest.Server
	backend string
	spoil   map[string]func(*fakeSession) // by a text in the code

	mu       sync.Mutex
	sessions map[string]*fakeSession
	bodies   []string // of the requests, as they came
}

type fakeSession struct {
	s      enclave.Session
	r      enclave.Result
	events []enclave.Event
}

// isolations are those of the backends that are played; this QEMU has no KVM.
var isolations = map[string]string{"gvisor": "userspace_kernel", "docker": "shared_kernel", "firecracker": "microvm", "qemu": "emulated"}

func newFake(t *testing.T, backend string) *fakePlane {
	f := &fakePlane{backend: backend, spoil: map[string]func(*fakeSession){}, sessions: map[string]*fakeSession{}}
	mux := http.NewServeMux()
	reply := func(w http.ResponseWriter, status int, v any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(v)
	}
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { reply(w, 200, map[string]string{"status": "ok"}) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, 200, enclave.Health{Ready: true, Backend: backend, Isolation: isolations[backend]})
	})
	mux.HandleFunc("POST /v1/sessions", func(w http.ResponseWriter, r *http.Request) {
		var req enclave.SessionRequest
		var body json.RawMessage
		if json.NewDecoder(r.Body).Decode(&body) != nil || json.Unmarshal(body, &req) != nil || req.Code == "" {
			reply(w, 400, enclave.Error{Status: 400, Code: "invalid_json"})
			return
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		f.bodies = append(f.bodies, string(body))
		reply(w, 201, f.run(req).s)
	})
	mux.HandleFunc("GET /v1/sessions", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, 200, enclave.Page[enclave.Session]{Items: []enclave.Session{}})
	})
	mux.HandleFunc("/v1/sessions/{id}/{part...}", func(w http.ResponseWriter, r *http.Request) { f.session(w, r, reply) })
	mux.HandleFunc("/v1/sessions/{id}", func(w http.ResponseWriter, r *http.Request) { f.session(w, r, reply) })
	f.Server = httptest.NewServer(mux)
	t.Cleanup(f.Close)
	return f
}

func (f *fakePlane) session(w http.ResponseWriter, r *http.Request, reply func(http.ResponseWriter, int, any)) {
	f.mu.Lock()
	s := f.sessions[r.PathValue("id")]
	f.mu.Unlock()
	if s == nil {
		reply(w, 404, enclave.Error{Status: 404, Code: "not_found"})
		return
	}
	switch part := r.PathValue("part"); {
	case r.Method == "DELETE":
		s.s.Phase = enclave.TornDown
		reply(w, 200, s.s)
	case part == "":
		reply(w, 200, s.s)
	case part == "result":
		reply(w, 200, s.r)
	case part == "audit":
		reply(w, 200, enclave.Page[enclave.Event]{Items: s.events})
	case part == "stream":
		w.Header().Set("Content-Type", "text/event-stream")
		raw, _ := json.Marshal(s.r)
		for kind, text := range map[string]string{"stdout": s.r.Stdout, "stderr": s.r.Stderr} {
			out, _ := json.Marshal(map[string]string{"text": text})
			fmt.Fprintf(w, "event: %s\nid: 0\ndata: %s\n\n", kind, out)
		}
		fmt.Fprintf(w, "event: result\nid: 1\ndata: %s\n\nevent: end\nid: 2\ndata: {}\n\n", raw)
	default:
		reply(w, 200, map[string]string{"version": "1"})
	}
}

var markForm = regexp.MustCompile(`"(attempt-[^"]*)"`)

// run returns a session that ended as the best of control planes would end it.
func (f *fakePlane) run(req enclave.SessionRequest) *fakeSession {
	id := fmt.Sprintf("s-00aa11-%d", len(f.sessions)+1)
	code := 0
	s := &fakeSession{
		s: enclave.Session{ID: id, Phase: enclave.Succeeded, Outcome: enclave.Succeeded, Backend: f.backend, Labels: map[string]string{}},
		r: enclave.Result{ExitCode: &code},
	}
	for _, m := range markForm.FindAllStringSubmatch(req.Code, -1) {
		s.r.Stdout += m[1] + "\n"
	}
	event := func(kind, data string) {
		s.events = append(s.events, enclave.Event{Session: id, Seq: uint64(len(s.events) + 1), Time: time.Unix(int64(len(s.events)), 0).UTC(), Type: kind, Data: json.RawMessage(data)})
	}
	event("session_created", `{"caller":"k","language":"python","requestHash":"h"}`)
	isolation := isolations[f.backend]
	s.s.Isolation = isolation
	event("sandbox_started", `{"backend":"`+f.backend+`","isolation":"`+isolation+`"}`)
	deny := func(host, protocol string) {
		event("egress_denied", fmt.Sprintf(`{"host":%q,"protocol":%q,"reason":"not_allowed","count":1}`, host, protocol))
	}
	failed := func() { s.s.Phase, s.s.Outcome, code = enclave.Failed, enclave.Failed, 1 }
	switch {
	case strings.Contains(req.Code, attackerHost):
		deny(metadataHost, "tcp")
		deny(attackerHost, "dns")
		s.r.JSON = json.RawMessage(`{"egressAttempted": true}`)
	case strings.Contains(req.Code, exfilHost):
		deny(exfilHost, "dns")
		failed()
	case strings.Contains(req.Code, metadataHost):
		deny(metadataHost, "tcp")
		failed()
	case strings.Contains(req.Code, "os.fork()\n") && req.Limits.PidsLimit == 64:
		event("limit_exceeded", `{"resource":"pidsLimit","limit":64,"observed":97,"evidence":"gvisor task list","source":"host"}`)
		s.s.Phase, s.s.Outcome, s.s.KillReason, s.r.ExitCode = enclave.Killed, enclave.Killed, "pids_exceeded", nil
	case strings.Contains(req.Code, "/etc/shadow"):
		s.r.Stdout += "refused PermissionError\nrefused FileNotFoundError\n"
	case strings.Contains(req.Code, "total"):
		s.r.JSON = json.RawMessage(`{"answer": 285}`)
	}
	event("result_collected", `{"resultBytes":0}`)
	event("workload_exited", `{"outcome":"`+string(s.s.Outcome)+`"}`)
	event("usage_metered", fmt.Sprintf(`{"cpuSeconds":0.%d,"wallSeconds":1}`, len(f.backend)))
	for text, spoil := range f.spoil {
		if strings.Contains(req.Code, text) {
			spoil(s)
		}
	}
	f.sessions[id] = s
	return s
}

// without returns events without those of a kind.
func without(events []enclave.Event, kind string) []enclave.Event {
	var out []enclave.Event
	for _, e := range events {
		if e.Type != kind {
			out = append(out, e)
		}
	}
	return out
}
