package simulator

import (
	"errors"
	"io/fs"
	"net/http"
	"strings"
	"testing"

	"github.com/enclave-run/enclave/internal/wire"
)

// Each call that the simulator models has an answer, and a call of a process goes to
// the one that its path names.
func TestCallsReachTheProcessTheyName(t *testing.T) {
	c := start(t)
	ctx := t.Context()
	endless := wire.StartRequest{Argv: []string{"sleep", "3600"}}
	first, err := c.client.Start(ctx, endless)
	if err != nil {
		t.Fatal(err)
	}
	second, err := c.client.Start(ctx, endless)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(second.Input(ctx, []byte("x")), second.CloseStdin(ctx), second.Signal(ctx, 9)); err != nil {
		t.Fatal(err)
	}
	for {
		e, err := second.Next()
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind == wire.Exited {
			if e.Signal != 9 {
				t.Errorf("it ended by signal %d", e.Signal)
			}
			break
		}
	}
	again, err := c.client.Connect(ctx, first.ID())
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
	if _, err := c.client.Connect(ctx, 77); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a process that never was: %v", err)
	}
	l, err := c.client.Processes(ctx)
	if err != nil || len(l) != 1 || l[0].ID != first.ID() {
		t.Errorf("left are %v, %v", l, err)
	}
}

// What is no call of the protocol is not answered as one.
func TestUnknownCallsHaveNoAnswer(t *testing.T) {
	g := &guest{}
	for _, call := range []string{"GET /", "PUT /v1/hello", "GET /v1/processes/", "GET /v1/processes/1", "POST /v1/processes/1/output/x", "POST /v1/processes/1/1/signal", "get /v1/hello"} {
		method, path, _ := strings.Cut(call, " ")
		r, err := http.NewRequest(method, "http://guest"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if g.route(r) != nil {
			t.Errorf("%s has an answer", call)
		}
	}
}
