package control

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/enclave-run/enclave/internal/auth"
	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/simulator"
	"github.com/enclave-run/enclave/internal/request"
	"github.com/enclave-run/enclave/internal/session"
)

func TestBadRequestsAreRefusedWithTheirField(t *testing.T) {
	n := func(v int64) *int64 { return &v }
	allow := func(rules ...string) request.Request {
		return request.Request{Code: "1", Egress: session.Egress{Mode: "allowlist", Allow: rules}}
	}
	for name, tc := range map[string]struct {
		req   request.Request
		field string
	}{
		"no code":                       {request.Request{}, "code"},
		"code and argv":                 {request.Request{Code: "1", Argv: []string{"true"}}, "code"},
		"code over 10 MiB":              {request.Request{Code: strings.Repeat("x", request.MaxCode+1)}, "code"},
		"NUL in code":                   {request.Request{Code: "print(1)\x00"}, "code"},
		"code that is not UTF-8":        {request.Request{Code: "\xff\xfe"}, "code"},
		"unknown language":              {request.Request{Code: "1", Language: "ruby"}, "language"},
		"language with argv":            {request.Request{Argv: []string{"true"}, Language: "bash"}, "language"},
		"empty program":                 {request.Request{Argv: []string{""}}, "argv[0]"},
		"NUL in argv":                   {request.Request{Argv: []string{"echo", "a\x00b"}}, "argv[1]"},
		"pids 0":                        {request.Request{Code: "1", Limits: request.Limits{Pids: n(0)}}, "limits.pidsLimit"},
		"memory negative":               {request.Request{Code: "1", Limits: request.Limits{MemoryMB: n(-1)}}, "limits.memoryMb"},
		"cpu share 0":                   {request.Request{Code: "1", Limits: request.Limits{CPUMillis: n(0)}}, "limits.cpuMillis"},
		"cpu seconds 0":                 {request.Request{Code: "1", Limits: request.Limits{CPUSeconds: n(0)}}, "limits.cpuSeconds"},
		"wall negative":                 {request.Request{Code: "1", Limits: request.Limits{WallSeconds: n(-5)}}, "limits.wallSeconds"},
		"disk 0":                        {request.Request{Code: "1", Limits: request.Limits{DiskMB: n(0)}}, "limits.diskMb"},
		"output 0":                      {request.Request{Code: "1", Limits: request.Limits{OutputBytes: n(0)}}, "limits.outputBytes"},
		"egress bytes 0":                {request.Request{Code: "1", Limits: request.Limits{EgressBytes: n(0)}}, "limits.egressBytes"},
		"huge pids":                     {request.Request{Code: "1", Limits: request.Limits{Pids: n(1 << 62)}}, "limits.pidsLimit"},
		"memory over the ceiling":       {request.Request{Code: "1", Limits: request.Limits{MemoryMB: n(1 << 40)}}, "limits.memoryMb"},
		"unknown mode":                  {request.Request{Code: "1", Egress: session.Egress{Mode: "allow_all"}}, "egress"},
		"rules with deny_all":           {request.Request{Code: "1", Egress: session.Egress{Mode: "deny_all", Allow: []string{"a.example.com"}}}, "egress"},
		"empty rule":                    {allow("api.example.com", ""), "egress.allow[1]"},
		"a URL as rule":                 {allow("https://api.example.com"), "egress.allow[0]"},
		"a path in a rule":              {allow("api.example.com/v1"), "egress.allow[0]"},
		"an IDN as rule":                {allow("bücher.example"), "egress.allow[0]"},
		"a numeric host":                {allow("2130706433"), "egress.allow[0]"},
		"hexadecimal host":              {allow("0x7f000001"), "egress.allow[0]"},
		"metadata address":              {allow("169.254.169.254"), "egress.allow[0]"},
		"loopback":                      {allow("127.0.0.1"), "egress.allow[0]"},
		"port 0":                        {allow("api.example.com:0"), "egress.allow[0]"},
		"port 70000":                    {allow("api.example.com:70000"), "egress.allow[0]"},
		"file above /work":              {request.Request{Code: "1", Files: map[string]string{"../etc/passwd": ""}}, "files"},
		"absolute file":                 {request.Request{Code: "1", Files: map[string]string{"/etc/passwd": ""}}, "files"},
		"file with a climbing middle":   {request.Request{Code: "1", Files: map[string]string{"a/../../b": ""}}, "files"},
		"a long file name":              {request.Request{Code: "1", Files: map[string]string{"a/" + strings.Repeat("x", 256): ""}}, "files"},
		"file named like /work":         {request.Request{Code: "1", Files: map[string]string{"/work/": ""}}, "files"},
		"file that is also a directory": {request.Request{Code: "1", Files: map[string]string{"a": "", "a/b": ""}}, "files"},
		"file named twice":              {request.Request{Code: "1", Files: map[string]string{"a": "", "/work/a": ""}}, "files"},
		"files over 10 MiB":             {request.Request{Code: "1", Files: map[string]string{"a": strings.Repeat("x", request.MaxFileBytes+1)}}, "files"},
		"label with a control code":     {request.Request{Code: "1", Labels: map[string]string{"a": "\x1b[2J"}}, "labels"},
		"empty label":                   {request.Request{Code: "1", Labels: map[string]string{"": "x"}}, "labels"},
		"idempotency key with newline":  {request.Request{Code: "1", IdempotencyKey: "a\nb"}, "idempotencyKey"},
		"unknown isolation":             {request.Request{Code: "1", MinIsolation: "strong"}, "minIsolation"},
	} {
		t.Run(name, func(t *testing.T) {
			p, _ := newPlane(t)
			_, err := p.Create(t.Context(), caller, tc.req)
			var v *request.FieldError
			if !errors.As(err, &v) {
				t.Fatalf("error is %v, want a FieldError", err)
			}
			if v.Field != tc.field {
				t.Errorf("field %q (%s), want %q", v.Field, v.Detail, tc.field)
			}
			if left, err := p.Sessions(t.Context(), caller, "", 10); err != nil || len(left) != 0 {
				t.Errorf("%d sessions exist after a refusal, error %v", len(left), err)
			}
		})
	}
}

// A claiming backend says that it isolates as it is told.
type claiming struct {
	backend.Backend
	isolation backend.Isolation
}

func (c claiming) Info() backend.Info {
	i := c.Backend.Info()
	i.Isolation = c.isolation
	return i
}

// TestIsolationBelowTheWishIsRefused has each isolation meet each wish: what is
// emulated is less than gVisor, whatever its kernel is.
func TestIsolationBelowTheWishIsRefused(t *testing.T) {
	order := []string{"none", "shared_kernel", "emulated", "userspace_kernel", "microvm"}
	for have, name := range order {
		p, _ := newPlaneOn(t, claiming{simulator.New(), backend.Isolation(have)})
		for want, wish := range order {
			_, err := p.Create(t.Context(), caller, request.Request{Code: "1", MinIsolation: wish})
			if want > have && !errors.Is(err, ErrIsolation) || want <= have && err != nil {
				t.Errorf("minIsolation %s on %s: error is %v", wish, name, err)
			}
		}
	}
}

func TestLimitsAreAllFilledIn(t *testing.T) {
	p, _ := newPlane(t)
	pids := int64(64)
	s, err := p.Create(t.Context(), caller, request.Request{Code: "1", Limits: request.Limits{Pids: &pids}})
	if err != nil {
		t.Fatal(err)
	}
	want := session.Limits{Pids: 64, MemoryMB: 512, CPUMillis: 1000, CPUSeconds: 60, WallSeconds: 300, DiskMB: 512, OutputBytes: 10_000_000, EgressBytes: 100_000_000}
	if s.Limits != want {
		t.Errorf("limits are %+v, want %+v", s.Limits, want)
	}
}

func TestAnIdempotencyKeyMakesOneSession(t *testing.T) {
	p, _ := newPlane(t)
	first, err := p.Create(t.Context(), caller, request.Request{Code: "1", IdempotencyKey: "k"})
	if err != nil {
		t.Fatal(err)
	}
	again, err := p.Create(t.Context(), caller, request.Request{Code: "1", IdempotencyKey: "k"})
	if err != nil || again.ID != first.ID {
		t.Errorf("the same request again: session %q, error %v; want %q", again.ID, err, first.ID)
	}
	if _, err := p.Create(t.Context(), caller, request.Request{Code: "2", IdempotencyKey: "k"}); !errors.Is(err, ErrIdempotency) {
		t.Errorf("another request with the same key: error is %v", err)
	}
	other := caller
	other.Org = "other"
	foreign, err := p.Create(t.Context(), other, request.Request{Code: "1", IdempotencyKey: "k"})
	if err != nil || foreign.ID == first.ID {
		t.Errorf("another organisation's request with the same key: session %q, error %v", foreign.ID, err)
	}
}

// Every method refuses a caller without the scope, and shows another
// organisation's session exactly as one that does not exist.
func TestEveryMethodAsksWhoCalls(t *testing.T) {
	p, _ := newPlane(t)
	s := runToEnd(t, p, request.Request{Code: "1"})
	stranger := auth.Caller{User: "eve", Org: "other", Scopes: caller.Scopes}
	nobody := auth.Caller{Org: "acme"}
	for name, call := range map[string]func(context.Context, auth.Caller, string) error{
		"Session": func(ctx context.Context, c auth.Caller, id string) error { _, err := p.Session(ctx, c, id); return err },
		"Result": func(ctx context.Context, c auth.Caller, id string) error {
			_, _, err := p.Result(ctx, c, id)
			return err
		},
		"Events": func(ctx context.Context, c auth.Caller, id string) error {
			_, err := p.Events(ctx, c, id, 0, 10)
			return err
		},
		"Watch": func(ctx context.Context, c auth.Caller, id string) error {
			_, err := p.Watch(ctx, c, id, Cursor{})
			return err
		},
		"Bundle": func(ctx context.Context, c auth.Caller, id string) error { _, err := p.Bundle(ctx, c, id); return err },
		"Inclusion": func(ctx context.Context, c auth.Caller, id string) error {
			_, err := p.Inclusion(ctx, c, id, 1, 0)
			return err
		},
		"Teardown": func(ctx context.Context, c auth.Caller, id string) error {
			_, err := p.Teardown(ctx, c, id)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			for who, c := range map[string]auth.Caller{"zero caller": {}, "caller without scopes": nobody} {
				if err := call(t.Context(), c, s.ID); !errors.Is(err, ErrForbidden) {
					t.Errorf("%s: error is %v", who, err)
				}
			}
			foreign := call(t.Context(), stranger, s.ID)
			missing := call(t.Context(), stranger, "s-000000-9")
			if !errors.Is(foreign, session.ErrNotFound) || strings.ReplaceAll(foreign.Error(), s.ID, "s-000000-9") != missing.Error() {
				t.Errorf("a foreign session gives %v, one that does not exist %v", foreign, missing)
			}
			if err := call(t.Context(), caller, s.ID); err != nil {
				t.Errorf("its owner: %v", err)
			}
		})
	}
	if _, err := p.Create(t.Context(), nobody, request.Request{Code: "1"}); !errors.Is(err, ErrForbidden) {
		t.Errorf("Create without the scope: %v", err)
	}
	for _, c := range []auth.Caller{{}, nobody} {
		if _, err := p.Consistency(t.Context(), c, 0, 0); !errors.Is(err, ErrForbidden) {
			t.Errorf("Consistency without the scope: %v", err)
		}
		if _, err := p.Checkpoint(t.Context(), c); !errors.Is(err, ErrForbidden) {
			t.Errorf("Checkpoint without the scope: %v", err)
		}
	}
	for name, call := range map[string]func() error{
		"a log that has not grown so far": func() error { _, err := p.Consistency(t.Context(), caller, 99, 0); return err },
		"a negative size":                 func() error { _, err := p.Consistency(t.Context(), caller, -1, 0); return err },
		"a size that is to come":          func() error { _, err := p.Inclusion(t.Context(), caller, s.ID, 1, 99); return err },
		"another negative size":           func() error { _, err := p.Inclusion(t.Context(), caller, s.ID, 1, -1); return err },
	} {
		if bad := (*request.FieldError)(nil); !errors.As(call(), &bad) {
			t.Errorf("%s: %v", name, call())
		}
	}
	if _, err := p.Sessions(t.Context(), nobody, "", 10); !errors.Is(err, ErrForbidden) {
		t.Errorf("Sessions without the scope: %v", err)
	}
	if l, err := p.Sessions(t.Context(), stranger, "", 10); err != nil || len(l) != 0 {
		t.Errorf("a stranger lists %d sessions, error %v", len(l), err)
	}
}

// A session that could only be lost is not made: its creator is told to wait.
func TestSessionWithoutAnImageIsRefused(t *testing.T) {
	p, l := newPlane(t)
	image := p.image
	p.image = func(context.Context) (string, error) { return "", errors.New("it is being built") }
	if _, err := p.Create(t.Context(), caller, request.Request{Code: "pass"}); !errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), "being built") {
		t.Errorf("%v", err)
	}
	if all, err := l.store.Sessions(t.Context(), caller.Org, "", 10); err != nil || len(all) != 0 {
		t.Errorf("%d sessions, %v", len(all), err)
	}
	p.image = image
	if _, err := p.Create(t.Context(), caller, request.Request{Code: "pass"}); err != nil {
		t.Errorf("with an image: %v", err)
	}
}
