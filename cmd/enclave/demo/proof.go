package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/egress"
	"github.com/enclave-run/enclave/internal/gateway"
)

// A proof is the outcome of a positive control: the same attempt, allowed. It
// shows that a pass is the work of the policy and not of a broken workload.
type proof struct {
	run    bool
	err    error  // why it failed
	detail string // why it was not run, or what was seen
}

// guard turns a pass into a failure if the control failed.
func (c proof) guard(v verdict) verdict {
	if c.run && c.err != nil {
		return fail("positive control failed: %v", c.err)
	}
	return v
}

// String is how reports show the control.
func (c proof) String() string {
	switch {
	case !c.run:
		return "not run: " + c.detail
	case c.err != nil:
		return "failed: " + c.err.Error()
	}
	return "passed: " + c.detail
}

// controls are the positive controls of the hostile workloads.
type controls struct{ exfil, metadata, fork, shadow, secret proof }

func notRun(why string) controls {
	c := proof{detail: why}
	return controls{exfil: c, metadata: c, fork: c, shadow: c, secret: c}
}

// sinkAddr is what the exfiltration host resolves to in a positive control. It
// is one of the addresses for documentation (RFC 5737), and goes nowhere else.
var sinkAddr = netip.MustParseAddr("192.0.2.1")

// A sink is where the attempts of a positive control end: an HTTP server on
// loopback that remembers what it was asked.
type sink struct {
	server *http.Server
	addr   string

	mu       sync.Mutex
	requests []string // "host path?query"
	dials    []string // what the gateway dialled
}

func newSink() (*sink, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for the sink: %w", err)
	}
	s := &sink{addr: l.Addr().String()}
	s.server = &http.Server{
		ReadHeaderTimeout: 30 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			s.mu.Lock()
			s.requests = append(s.requests, r.Host+" "+r.URL.RequestURI())
			s.mu.Unlock()
			_, _ = io.WriteString(w, "the sink has it\n")
		}),
	}
	go func() { _ = s.server.Serve(l) }() // ends with close, which waits for it
	return s, nil
}

func (s *sink) close() { _ = s.server.Close() }

// LookupNetIP answers for the exfiltration host alone.
func (s *sink) LookupNetIP(_ context.Context, network, host string, _ func(sent, received int) error) ([]netip.Addr, error) {
	if strings.TrimSuffix(host, ".") != exfilHost || network == "ip6" {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	return []netip.Addr{sinkAddr}, nil
}

// DialContext leads the two attempts to the sink, and refuses all else.
func (s *sink) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if address != sinkAddr.String()+":80" && address != metadataHost+":80" {
		return nil, fmt.Errorf("the positive control does not dial %s", address)
	}
	s.mu.Lock()
	s.dials = append(s.dials, address)
	s.mu.Unlock()
	var d net.Dialer
	return d.DialContext(ctx, network, s.addr)
}

// heard reports whether the sink was asked for exactly this.
func (s *sink) heard(request string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.requests {
		if r == request {
			return true
		}
	}
	return false
}

// dialled reports whether the gateway dialled address on behalf of a workload.
func (s *sink) dialled(address string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.dials {
		if d == address {
			return true
		}
	}
	return false
}

// prove runs the positive controls in a control plane of their own, whose
// gateway, the same code, runs in this process and leads to a sink.
func (d *adversarial) prove(ctx context.Context, backend string) (c controls, err error) {
	s, err := newSink()
	if err != nil {
		return controls{}, err
	}
	defer s.close()
	table, err := egress.Standard()
	if err != nil {
		return controls{}, err
	}
	table = table.Opened(netip.PrefixFrom(sinkAddr, 32), netip.MustParsePrefix(metadataHost+"/32"))
	g, err := gateway.New(gateway.Config{Resolver: s, Dialer: s, Table: table, Now: d.Now})
	if err != nil {
		return controls{}, fmt.Errorf("gateway of the positive control: %w", err)
	}
	p, err := d.Boot(ctx, Boot{Backend: backend, Gateway: g, Table: &table})
	if err != nil {
		return controls{}, fmt.Errorf("control plane of the positive control: %w", err)
	}
	defer func() { err = errors.Join(err, p.Close(context.WithoutCancel(ctx))) }()

	allow := func(code, host string) enclave.SessionRequest {
		r := request(code)
		r.Egress = enclave.Egress{Mode: enclave.Allowlist, Allow: []string{host}}
		return r
	}
	exfil := allow(exfilCode(d.canary.mark), exfilHost)
	exfil.Files = map[string]string{"secret": d.canary.file}
	forks := request(hundredForks)
	forks.Limits.PidsLimit = 256

	modelled := backend == Modelled
	var wg sync.WaitGroup
	wg.Go(func() {
		c.exfil = reaches(ctx, p, s, exfil, modelled, sinkAddr.String()+":80", exfilHost+" /exfil?data="+d.canary.file)
	})
	wg.Go(func() {
		c.metadata = reaches(ctx, p, s, allow(metadataCode(d.canary.mark), metadataHost), modelled, metadataHost+":80",
			metadataHost+" "+strings.TrimPrefix(metadataURL, "http://"+metadataHost))
	})
	wg.Go(func() { c.fork = forksSucceed(ctx, p, forks, modelled) })
	wg.Wait()
	c.shadow = d.hostReads()
	return c, nil
}

// reaches runs the allowed attempt and wants the sink to have heard it.
func reaches(ctx context.Context, p *Plane, s *sink, req enclave.SessionRequest, modelled bool, address, want string) proof {
	got, err := watch(ctx, p, req)
	switch {
	case err != nil:
		return proof{run: true, err: err}
	case !s.dialled(address):
		return proof{run: true, err: fmt.Errorf("the allowed attempt dialled nothing: %s, %s", got.session.Outcome, lastLine(got.result.Stderr))}
	case modelled:
		return proof{run: true, detail: "modelled: the gateway dialled " + address}
	case !s.heard(want):
		return proof{run: true, err: errors.New("the sink did not hear the allowed request")}
	case got.session.Outcome != enclave.Succeeded:
		return proof{run: true, err: fmt.Errorf("the allowed attempt ended as %s: %s", got.session.Outcome, lastLine(got.result.Stderr))}
	}
	return proof{run: true, detail: "the sink heard the request when it was allowed"}
}

// forksSucceed runs 100 forks under a limit that permits them.
func forksSucceed(ctx context.Context, p *Plane, req enclave.SessionRequest, modelled bool) proof {
	if modelled {
		return proof{detail: "nothing is executed"}
	}
	got, err := watch(ctx, p, req)
	if err != nil {
		return proof{run: true, err: err}
	}
	var r struct{ Forks int }
	if json.Unmarshal(got.result.JSON, &r) != nil || r.Forks != 100 || got.session.Outcome != enclave.Succeeded {
		return proof{run: true, err: fmt.Errorf("100 forks under 256 ended as %s/%s with %s", got.session.Outcome, orNone(got.session.KillReason), got.compactJSON())}
	}
	return proof{run: true, detail: "100 forks under 256 succeeded"}
}

// hostReads reads on the host what the workload must not.
func (d *adversarial) hostReads() proof {
	raw, err := os.ReadFile(d.canary.hostPath)
	if err != nil {
		return proof{run: true, err: err}
	}
	if strings.TrimSpace(string(raw)) != d.canary.host {
		return proof{run: true, err: fmt.Errorf("%s does not have the canary", d.canary.hostPath)}
	}
	if _, err := os.ReadFile("/etc/shadow"); err != nil {
		if os.Geteuid() != 0 {
			return proof{detail: "only root reads /etc/shadow"}
		}
		return proof{run: true, err: err}
	}
	return proof{run: true, detail: "the host reads both paths and finds the canary"}
}
