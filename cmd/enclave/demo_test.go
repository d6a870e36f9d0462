package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/enclave-run/enclave/cmd/enclave/demo"
	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/control"
	"github.com/enclave-run/enclave/internal/egress"
	"github.com/enclave-run/enclave/internal/gateway"
	"github.com/enclave-run/enclave/internal/image"
	"github.com/enclave-run/enclave/internal/statedir"
	"github.com/enclave-run/enclave/internal/testenv"
)

// demoConfig returns what `enclave demo` runs with on this state directory.
func demoConfig(t *testing.T, env []string, s *statedir.Dir, backend string) demo.Config {
	t.Helper()
	p := newProgram()
	p.err = io.Discard
	for _, e := range env {
		if dir, ok := strings.CutPrefix(e, "ENCLAVE_TEST_BIN="); ok {
			p.carrier.Beside = []string{dir}
		}
	}
	images, err := image.Open(s.File("images"))
	if err != nil {
		t.Fatal(err)
	}
	return demo.Config{
		Out: io.Discard, Err: io.Discard, Evidence: t.TempDir(), Temp: t.TempDir(), Now: time.Now, Backends: []string{backend},
		Boot: func(ctx context.Context, b demo.Boot) (*demo.Plane, error) { return p.bootDemo(ctx, s, images, b) },
	}
}

func TestDemosOnGVisorPassAndLeaveNothing(t *testing.T) {
	t.Parallel()
	env, s := onGVisor(t)
	c := demoConfig(t, env, s, "gvisor")
	var out bytes.Buffer
	c.Out = &out

	// While a control plane of the demo lives, its instances are seen.
	instances := map[string]bool{}
	ports := map[string]bool{}
	boot := c.Boot
	c.Boot = func(ctx context.Context, b demo.Boot) (*demo.Plane, error) {
		plane, err := boot(ctx, b)
		marks, _ := filepath.Glob(s.File("tmp", "*", statedir.MarkName))
		for _, m := range marks {
			if t, err := statedir.Find(filepath.Dir(m)); err == nil {
				instances[t.Instance] = true
			}
		}
		if err == nil {
			ports[plane.BaseURL] = true
		}
		return plane, err
	}
	for name, run := range map[string]func(context.Context, demo.Config) error{"adversarial": demo.Adversarial, "backend-parity": demo.Parity} {
		if err := run(t.Context(), c); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out.Bytes())
		}
	}
	for _, want := range []string{"backend: gvisor  ·  mode: kernel containment", "6/6 checks", "mode: boot:multi  ·  backends: gvisor", "One kernel."} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("not shown: %q", want)
		}
	}
	report, err := os.ReadFile(filepath.Join(c.Evidence, "adversarial-report.json"))
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(report, []byte(`": "passed: `)); n != 5 {
		t.Errorf("%d positive controls passed, want 5: %s", n, report)
	}

	if len(instances) != 3 || len(ports) != 3 {
		t.Fatalf("instances %v, ports %v: want 3 of each", instances, ports)
	}
	if left, err := os.ReadDir(s.File("tmp")); err != nil || len(left) > 0 {
		t.Errorf("left in tmp: %v, %v", left, err)
	}
	if left, err := statedir.MountsBelow(s.Path); err != nil || len(left) > 0 {
		t.Errorf("mounts left: %q, %v", left, err)
	}
	for i := range instances {
		for _, pattern := range []string{"/sys/fs/cgroup/*/enclave/" + i + "-*", "/sys/fs/cgroup/enclave/" + i + "-*"} {
			if left, err := filepath.Glob(pattern); err != nil || len(left) > 0 {
				t.Errorf("control groups left: %q, %v", left, err)
			}
		}
	}
	for _, line := range processesNaming(t, s.Path) {
		t.Errorf("process left: %s", line)
	}
	if left, err := os.ReadDir(c.Temp); err != nil || len(left) > 0 {
		t.Errorf("canary left: %v, %v", left, err)
	}
}

// What holds in gVisor holds on the others: six of six, none of them vacuous. Where
// the host's kernel is shared, or the processor emulated, the demo says so.
func TestAdversarialIsSixOfSixOnEachKernel(t *testing.T) {
	t.Parallel()
	for backend, modes := range map[string][]string{
		"docker":      {"kernel containment (the host's own kernel: not a security boundary)"},
		"qemu":        {"kernel containment", "kernel containment (software emulation: for development and tests)"},
		"firecracker": {"kernel containment"},
	} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			testenv.Need(t, backend)
			c, s := onKernels(t, backend)
			var out bytes.Buffer
			c.Out = &out
			if err := demo.Adversarial(t.Context(), c); err != nil {
				t.Fatalf("%v\n%s", err, out.Bytes())
			}
			if !strings.Contains(out.String(), "no secret leaked — 6/6 checks.") {
				t.Errorf("shown:\n%s", out.Bytes())
			}
			if !slices.ContainsFunc(modes, func(m string) bool { return strings.Contains(out.String(), "backend: "+backend+"  ·  mode: "+m+"\n") }) {
				t.Errorf("the banner has none of %q:\n%s", modes, out.Bytes())
			}
			report, err := os.ReadFile(filepath.Join(c.Evidence, "adversarial-report.json"))
			if n := bytes.Count(report, []byte(`": "passed: `)); err != nil || n != 5 {
				t.Errorf("%d positive controls passed, want 5: %s, %v", n, report, err)
			}
			leavesNothing(t, s)
		})
	}
}

// processesNaming returns the processes that have text in their arguments or
// their mounts' root.
func processesNaming(t *testing.T, text string) []string {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, dir := range dirs {
		raw, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err == nil && bytes.Contains(raw, []byte(text)) {
			found = append(found, dir+": "+string(bytes.ReplaceAll(raw, []byte{0}, []byte{' '})))
		}
	}
	return found
}

// A brokenGate is a real gateway in front of which something is broken.
type brokenGate struct {
	control.Gateway
	grant func(egress.Grant) egress.Grant
	keep  func(audit.Type) bool // which events are recorded
}

func (g brokenGate) Serve(ctx context.Context, packets net.Conn, session string, grant egress.Grant, rec audit.Recorder) (egress.Traffic, error) {
	if g.grant != nil {
		grant = g.grant(grant)
	}
	if g.keep != nil {
		rec = forgetful{rec, g.keep}
	}
	return g.Gateway.Serve(ctx, packets, session, grant, rec)
}

type forgetful struct {
	audit.Recorder
	keep func(audit.Type) bool
}

func (f forgetful) Record(ctx context.Context, session string, t audit.Type, d audit.Data) error {
	if !f.keep(t) {
		return nil
	}
	return f.Recorder.Record(ctx, session, t, d)
}

// elsewhere leads every connection to one server.
type elsewhere struct{ addr string }

func (elsewhere) LookupNetIP(context.Context, string, string, func(sent, received int) error) ([]netip.Addr, error) {
	return []netip.Addr{netip.MustParseAddr("192.0.2.9")}, nil
}

func (e elsewhere) DialContext(ctx context.Context, network, _ string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, network, e.addr)
}

// A demo over a control plane with one broken part is red; the parts are real.
func TestDemoIsRedOverABrokenControlPlane(t *testing.T) {
	t.Parallel()
	somebody := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "got it") }))
	t.Cleanup(somebody.Close)
	table, err := egress.Standard()
	if err != nil {
		t.Fatal(err)
	}
	table = table.Opened(netip.MustParsePrefix("192.0.2.9/32"), netip.MustParsePrefix("169.254.169.254/32"))
	e := elsewhere{strings.TrimPrefix(somebody.URL, "http://")}
	real, err := gateway.New(gateway.Config{Resolver: e, Dialer: e, Table: table})
	if err != nil {
		t.Fatal(err)
	}
	allowAll := func(g egress.Grant) egress.Grant {
		return egress.Grant{Mode: "allowlist", Allow: []string{"evil.example.com", "169.254.169.254", "exfil.attacker.example"}, Budget: g.Budget}
	}
	denyAll := func(g egress.Grant) egress.Grant { return egress.Grant{Mode: "deny_all", Budget: g.Budget} }
	main := func(b *demo.Boot, g control.Gateway) {
		if b.Gateway == nil {
			b.Gateway = g
		}
	}
	for name, tc := range map[string]struct {
		spoil func(*demo.Boot)
		want  string
	}{
		"the gateway lets everything through": {func(b *demo.Boot) { main(b, brokenGate{Gateway: real, grant: allowAll}) }, "egress was allowed"},
		"denials are not recorded": {func(b *demo.Boot) {
			main(b, brokenGate{Gateway: real, keep: func(t audit.Type) bool { return t != audit.EgressDenied }})
		}, "no egress_denied event"},
		"the attempts would not have worked anyway": {func(b *demo.Boot) {
			if b.Gateway != nil {
				b.Gateway = brokenGate{Gateway: b.Gateway, grant: denyAll}
			}
		}, "positive control failed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			env, s := simulated(t)
			c := demoConfig(t, env, s, "simulator")
			boot := c.Boot
			c.Boot = func(ctx context.Context, b demo.Boot) (*demo.Plane, error) {
				tc.spoil(&b)
				return boot(ctx, b)
			}
			var failed *demo.Failed
			if err := demo.Adversarial(t.Context(), c); !errors.As(err, &failed) {
				t.Fatalf("the demo passed: %v", err)
			}
			if all := strings.Join(failed.Failures, "\n"); !strings.Contains(all, tc.want) {
				t.Errorf("failures are %q, want %q", all, tc.want)
			}
			if left, err := os.ReadDir(s.File("tmp")); err != nil || len(left) > 0 {
				t.Errorf("left in tmp: %v, %v", left, err)
			}
		})
	}
}

func TestDemoIsRedWhenTheServersLogHasAToken(t *testing.T) {
	t.Parallel()
	env, s := simulated(t)
	c := demoConfig(t, env, s, "simulator")
	boot := c.Boot
	c.Boot = func(ctx context.Context, b demo.Boot) (*demo.Plane, error) {
		plane, err := boot(ctx, b)
		if err != nil || b.Gateway != nil {
			return plane, err
		}
		// Nobody reads a secret out of a vault; a server that logs a token does
		// not ask.
		log := plane.Inside.Log
		plane.Inside.Log = func() []byte {
			return append(log(), "\nAuthorization: Bearer eyJhbGciOiJIUzI1NiJ9.eyJqdGkiOiIxIn0.c2ln\n"...)
		}
		return plane, nil
	}
	var failed *demo.Failed
	if err := demo.Adversarial(t.Context(), c); !errors.As(err, &failed) || !strings.Contains(failed.Error(), "the server's log") {
		t.Fatalf("the demo passed: %v", err)
	}
}
