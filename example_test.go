package enclave_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"os"

	"github.com/enclave-run/enclave"
)

// pretend is a control plane that knows one session, for the examples.
func pretend() *httptest.Server {
	mux := http.NewServeMux()
	file := func(pattern, name, contentType string, status int) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, _ *http.Request) {
			b, err := os.ReadFile("api/testdata/" + name)
			if err != nil {
				panic(err)
			}
			w.Header().Set("Content-Type", contentType)
			w.WriteHeader(status)
			w.Write(b)
		})
	}
	file("POST /v1/sessions", "session_pending.json", "application/json", http.StatusCreated)
	file("GET /v1/sessions", "sessions.json", "application/json", http.StatusOK)
	file("GET /v1/sessions/{id}/stream", "stream.sse", "text/event-stream", http.StatusOK)
	file("GET /v1/sessions/{id}/audit", "events.json", "application/json", http.StatusOK)
	file("DELETE /v1/sessions/{id}", "session_killed.json", "application/json", http.StatusOK)
	file("GET /readyz", "health.json", "application/json", http.StatusOK)
	file("/", "problem.json", "application/problem+json", http.StatusNotFound)
	return httptest.NewServer(mux)
}

func ExampleClient_Run() {
	srv := pretend()
	defer srv.Close()
	ctx := context.Background()
	c := &enclave.Client{BaseURL: srv.URL, APIKey: os.Getenv("ENCLAVE_API_KEY")}

	h, err := c.Run(ctx, enclave.SessionRequest{
		Code:   `enclave.result({"answer": sum(i*i for i in range(10))})`,
		Limits: enclave.Limits{WallSeconds: 30},
	})
	if err != nil {
		log.Fatal(err)
	}
	r, err := h.Result(ctx) // waits
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("exit status", *r.ExitCode)
	for _, d := range r.Denials {
		fmt.Println("denied", d.Host, d.Reason)
	}
	// Output:
	// exit status 0
	// denied evil.example.com not_allowed
	// denied 169.254.169.254 reserved_address
}

func ExampleHandle_Stream() {
	srv := pretend()
	defer srv.Close()
	c := &enclave.Client{BaseURL: srv.URL}

	for e, err := range c.Handle("s-0a1b2c-7").Stream(context.Background()) {
		if err != nil {
			log.Fatal(err)
		}
		switch e.Kind {
		case enclave.StreamPhase:
			fmt.Println("phase", e.Phase)
		case enclave.StreamStdout:
			fmt.Printf("stdout %q\n", e.Output)
		case enclave.StreamAudit:
			fmt.Println("audit", e.Audit.Type)
		}
	}
	// Output:
	// phase pending
	// phase running
	// audit session_created
	// stdout "hello <world>"
	// stdout "\n"
	// phase succeeded
}

func ExampleClient_Audit() {
	srv := pretend()
	defer srv.Close()
	c := &enclave.Client{BaseURL: srv.URL}

	record, err := c.Audit(context.Background(), "s-0a1b2c-7")
	if err != nil {
		log.Fatal(err)
	}
	for _, e := range record {
		if e.Type != "egress_denied" {
			continue
		}
		d, err := e.Detail()
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(e.Seq, d.Protocol, d.Host, d.Reason)
	}
	// Output:
	// 3 dns evil.example.com not_allowed
	// 4 tcp 169.254.169.254 reserved_address
}

func ExampleError() {
	srv := pretend()
	defer srv.Close()
	c := &enclave.Client{BaseURL: srv.URL}

	_, err := c.Get(context.Background(), "s-ffffff-1")
	fmt.Println(errors.Is(err, enclave.ErrNotFound))
	if refused := (*enclave.Error)(nil); errors.As(err, &refused) {
		fmt.Println(refused.Status, refused.Code)
	}
	// Output:
	// true
	// 404 not_found
}

func ExampleClient_List() {
	srv := pretend()
	defer srv.Close()
	c := &enclave.Client{BaseURL: srv.URL}

	p, err := c.List(context.Background(), enclave.ListOptions{Limit: 3})
	if err != nil {
		log.Fatal(err)
	}
	for _, s := range p.Items {
		fmt.Printf("%s %s %q\n", s.ID, s.Phase, s.KillReason)
	}
	fmt.Println("next page after", p.NextCursor)
	// Output:
	// s-0a1b2c-9 pending ""
	// s-0a1b2c-8 torn_down "pids_exceeded"
	// s-0a1b2c-7 succeeded ""
	// next page after s-0a1b2c-7
}
