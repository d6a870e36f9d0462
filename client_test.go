package enclave_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/enclave-run/enclave"
)

func serve(t *testing.T, h http.HandlerFunc) *enclave.Client {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return &enclave.Client{BaseURL: srv.URL + "/", APIKey: "ek_1_2", Token: "a.b.c"}
}

func TestRequestsAreAsTheServerWantsThem(t *testing.T) {
	var got []string
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		got = append(got, r.Method+" "+r.RequestURI+" "+r.Header.Get("Authorization")+" "+r.Header.Get("Content-Type")+" "+string(b))
		w.Write([]byte(`{}`))
	})
	ctx := t.Context()
	calls := []func() error{
		func() error {
			_, err := c.Run(ctx, enclave.SessionRequest{Code: "x", Limits: enclave.Limits{PidsLimit: 64, MemoryMB: -1}, IdempotencyKey: "k"})
			return err
		},
		func() error { _, err := c.Get(ctx, "s/../1"); return err },
		func() error { _, err := c.List(ctx, enclave.ListOptions{Limit: 7, Cursor: "a&b"}); return err },
		func() error { _, err := c.Result(ctx, "s"); return err },
		func() error { _, err := c.Audit(ctx, "s"); return err },
		func() error { _, err := c.Teardown(ctx, "s"); return err },
		func() error { _, err := c.Export(ctx, "s"); return err },
		func() error { _, err := c.Checkpoint(ctx); return err },
		func() error { _, err := c.Consistency(ctx, 3, 0); return err },
		func() error { _, err := c.Consistency(ctx, 3, 9); return err },
		func() error { _, err := c.Inclusion(ctx, "s", 2, 0); return err },
		func() error { _, err := c.Inclusion(ctx, "s", 2, 9); return err },
		func() error { _, err := c.Health(ctx); return err },
	}
	for _, call := range calls {
		if err := call(); err != nil {
			t.Error(err)
		}
	}
	want := []string{
		`POST /v1/sessions Bearer ek_1_2 application/json {"code":"x","limits":{"pidsLimit":64,"memoryMb":-1},"idempotencyKey":"k"}`,
		`GET /v1/sessions/s%2F..%2F1 Bearer ek_1_2  `,
		`GET /v1/sessions?cursor=a%26b&limit=7 Bearer ek_1_2  `,
		`GET /v1/sessions/s/result Bearer ek_1_2  `,
		`GET /v1/sessions/s/audit Bearer ek_1_2  `,
		`DELETE /v1/sessions/s Bearer ek_1_2  `,
		`GET /v1/sessions/s/export Bearer ek_1_2  `,
		`GET /v1/audit/checkpoint Bearer ek_1_2  `,
		`GET /v1/audit/consistency?from=3 Bearer ek_1_2  `,
		`GET /v1/audit/consistency?from=3&to=9 Bearer ek_1_2  `,
		`GET /v1/sessions/s/audit/2/proof Bearer ek_1_2  `,
		`GET /v1/sessions/s/audit/2/proof?size=9 Bearer ek_1_2  `,
		`GET /readyz Bearer ek_1_2  `,
	}
	if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// A credential must not follow where a server points.
func TestRedirectsAreNotFollowed(t *testing.T) {
	var reached atomic.Bool
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached.Store(true) }))
	defer other.Close()
	for _, own := range []*http.Client{nil, {}} {
		c := serve(t, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, other.URL, http.StatusTemporaryRedirect)
		})
		c.HTTPClient = own
		_, err := c.Get(t.Context(), "s")
		if refused := (*enclave.Error)(nil); !errors.As(err, &refused) || refused.Status != http.StatusTemporaryRedirect {
			t.Errorf("%v", err)
		}
	}
	if reached.Load() {
		t.Error("the other server was asked")
	}
}

func TestRefusalIsNotRepeated(t *testing.T) {
	var asked atomic.Int32
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		w.WriteHeader(http.StatusConflict)
		fmt.Fprint(w, `{"code":"idempotency_conflict","status":200}`)
	})
	_, err := c.Run(t.Context(), enclave.SessionRequest{Code: "x", IdempotencyKey: "k"})
	if !errors.Is(err, enclave.ErrIdempotency) || errors.Is(err, enclave.ErrNotFound) || asked.Load() != 1 {
		t.Errorf("a refusal: %v after %d requests", err, asked.Load())
	}
	if refused := (*enclave.Error)(nil); !errors.As(err, &refused) || refused.Status != http.StatusConflict {
		t.Error("the body's status was believed")
	}
}

func TestRefusalsOfOthersAreErrorsToo(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Retry-After", "7")
		http.Error(w, "<html>bad gateway", http.StatusBadGateway)
	})
	_, err := c.Get(t.Context(), "s")
	var refused *enclave.Error
	if !errors.As(err, &refused) || refused.Code != "http_502" || refused.RetryAfter != 7*time.Second {
		t.Errorf("%v", err)
	}
	if _, err := c.Health(t.Context()); err == nil {
		t.Error("a proxy's refusal is no health")
	}
	if errors.Is(&enclave.Error{}, &enclave.Error{}) {
		t.Error("an Error without a code is every other")
	}
}

func TestAuditFollowsPagesToTheirEnd(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		p := enclave.Page[enclave.Event]{Items: []enclave.Event{{Seq: 1, Data: json.RawMessage(`{}`)}}, NextCursor: "1"}
		switch r.URL.Query().Get("cursor") {
		case "1":
			p.Items[0].Seq, p.NextCursor = 2, ""
		case "":
			if strings.Contains(r.URL.Path, "endless") {
				p.Items, p.NextCursor = nil, "x"
			}
		}
		if err := json.NewEncoder(w).Encode(p); err != nil {
			t.Error(err)
		}
	})
	events, err := c.Audit(t.Context(), "s")
	if err != nil || len(events) != 2 || events[1].Seq != 2 {
		t.Errorf("%+v, %v", events, err)
	}
	if _, err := c.Audit(t.Context(), "endless"); err == nil {
		t.Error("a server without an end was believed")
	}
}

// What answers 200 and is no stream must not be asked again and again.
func TestStreamOfAStrangerIsGivenUp(t *testing.T) {
	for name, answer := range map[string]string{
		"html":    "<html>",
		"no json": "event: phase\ndata: {\n\n",
	} {
		var asked atomic.Int32
		c := serve(t, func(w http.ResponseWriter, r *http.Request) {
			asked.Add(1)
			if name != "html" {
				w.Header().Set("Content-Type", "text/event-stream")
			}
			io.WriteString(w, answer)
		})
		if _, err := c.Handle("s").Result(t.Context()); err == nil || asked.Load() != 1 {
			t.Errorf("%s: %v after %d requests", name, err, asked.Load())
		}
	}
}

func TestRefusedStreamIsNotAskedForAgain(t *testing.T) {
	var asked atomic.Int32
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		w.WriteHeader(http.StatusNotFound)
		io.WriteString(w, `{"code":"not_found"}`)
	})
	if _, err := c.Handle("s").Result(t.Context()); !errors.Is(err, enclave.ErrNotFound) || asked.Load() != 1 {
		t.Errorf("%v after %d requests", err, asked.Load())
	}
}

func TestStreamEndsWithItsContext(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		io.WriteString(w, "id: 1\nevent: phase\ndata: {\"phase\":\"running\"}\n\n")
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var last error
	n := 0
	for e, err := range c.Stream(ctx, "s", "") {
		n++
		if last = err; e.Phase == enclave.Running {
			cancel()
		}
	}
	if n != 2 || !errors.Is(last, context.Canceled) {
		t.Errorf("%d events, %v", n, last)
	}
}

func TestStreamStopsWhenItsReaderDoes(t *testing.T) {
	left := make(chan struct{})
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		io.WriteString(w, "event: phase\ndata: {\"phase\":\"running\"}\n\nevent: phase\ndata: {\"phase\":\"killed\"}\n\n")
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
		close(left)
	})
	n := 0
	for range c.Stream(t.Context(), "s", "") {
		n++
		break
	}
	if n != 1 {
		t.Errorf("%d events", n)
	}
	<-left // the connection was closed
}

// An event of a kind that this package does not know moves the position on, and
// is not shown.
func TestUnknownEventsAreSkipped(t *testing.T) {
	var resumed atomic.Value
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		if id := r.Header.Get("Last-Event-ID"); id != "" {
			resumed.Store(id)
			io.WriteString(w, "event: end\ndata: {}\n\n")
			return
		}
		io.WriteString(w, "id: 1\nevent: phase\ndata: {\"phase\":\"running\"}\n\nid: 2\nevent: usage\ndata: what\n\nid: 3\nevent: half")
	})
	var kinds []string
	for e, err := range c.Stream(t.Context(), "s", "") {
		if err != nil {
			t.Fatal(err)
		}
		kinds = append(kinds, e.Kind)
	}
	if strings.Join(kinds, " ") != "phase end" || resumed.Load() != "2" {
		t.Errorf("%q, resumed after %v", kinds, resumed.Load())
	}
	if _, err := c.Handle("s").Result(t.Context()); err == nil {
		t.Error("a stream without a result has one")
	}
}

func TestSocketIsUsedInsteadOfTheNetwork(t *testing.T) {
	path := t.TempDir() + "/s"
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var host string
	srv := &httptest.Server{Listener: ln, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host = r.Host
		io.WriteString(w, `{"ready":true}`)
	})}}
	srv.Start()
	defer srv.Close()
	c := &enclave.Client{Socket: path, BaseURL: "http://192.0.2.1:1"}
	if h, err := c.Health(t.Context()); err != nil || !h.Ready || host != "localhost" {
		t.Errorf("%+v, %v, host %q", h, err, host)
	}
}

func TestHandleRemembersWhatItSaw(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		phase := map[string]string{"POST": "pending", "GET": "running", "DELETE": "torn_down"}[r.Method]
		if strings.HasSuffix(r.URL.Path, "/audit") {
			io.WriteString(w, `{"items":[]}`)
			return
		}
		fmt.Fprintf(w, `{"id":"s-1","phase":%q}`, phase)
	})
	h, err := c.Run(t.Context(), enclave.SessionRequest{Code: "x"})
	if err != nil || h.ID() != "s-1" || h.Session().Phase != enclave.Pending || h.Session().Phase.Ended() {
		t.Fatalf("%+v, %v", h.Session(), err)
	}
	if s, err := h.Refresh(t.Context()); err != nil || s.Phase != enclave.Running || h.Session().Phase != enclave.Running {
		t.Errorf("%+v, %v", s, err)
	}
	if err := h.Teardown(t.Context()); err != nil || h.Session().Phase != enclave.TornDown || !h.Session().Phase.Ended() {
		t.Errorf("%+v, %v", h.Session(), err)
	}
	if events, err := h.Audit(t.Context()); err != nil || len(events) != 0 {
		t.Errorf("%v, %v", events, err)
	}
}
