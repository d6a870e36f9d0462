package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/enclave-run/enclave/cmd/enclave/demo"
	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/control"
	"github.com/enclave-run/enclave/internal/egress"
	"github.com/enclave-run/enclave/internal/gateway"
	"github.com/enclave-run/enclave/internal/image"
	"github.com/enclave-run/enclave/internal/parity"
	"github.com/enclave-run/enclave/internal/statedir"
	"github.com/enclave-run/enclave/internal/testenv"
	"github.com/enclave-run/enclave/internal/verify"
)

// notary returns who vouches in these tests.
func notary(t *testing.T) demo.Notary {
	t.Helper()
	private, _, err := audit.GenerateKey(rand.Reader, "notary.example/log")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := audit.NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	return demo.Notary{Version: "test", Signer: signer, Host: parity.Host{Kernel: "test", Arch: "test"}}
}

// onKernels returns what `enclave parity` runs with on this host, on backends.
func onKernels(t *testing.T, backends ...string) (demo.Config, *statedir.Dir) {
	t.Helper()
	env, s := onGVisor(t)
	c := demoConfig(t, env, s, "gvisor")
	c.Backends = backends
	p := newProgram()
	p.opts.State = s.Path
	if slices.Contains(backends, "qemu") || slices.Contains(backends, "firecracker") {
		if err := os.Remove(filepath.Join(p.opts.State, "kernels")); err != nil {
			t.Fatal(err)
		}
		if err := testenv.Link(testenv.Kernels(t), filepath.Join(p.opts.State, "kernels")); err != nil {
			t.Fatal(err)
		}
	}
	p.err = io.Discard
	p.carrier.Beside = []string{filepath.Dir(testenv.Binaries(t).Guest)}
	if slices.Contains(backends, "docker") {
		p.opts.Programs.DockerHost = testenv.Docker(t)
	}
	if slices.Contains(backends, "firecracker") {
		p.opts.Programs.Firecracker, p.opts.Programs.Jailer = testenv.Firecracker(t)
	}
	images, err := image.Open(s.File("images"))
	if err != nil {
		t.Fatal(err)
	}
	c.Boot = func(ctx context.Context, b demo.Boot) (*demo.Plane, error) { return p.bootDemo(ctx, s, images, b) }
	return c, s
}

func TestRealKernelsAreCertified(t *testing.T) {
	t.Parallel()
	realBackends := []string{"gvisor", "docker"}
	c, s := onKernels(t, realBackends...)
	var out bytes.Buffer
	c.Out = &out
	n := notary(t)
	done, err := demo.Certify(t.Context(), c, n)
	if err != nil || !done.Passed {
		t.Fatalf("%v\n%s", err, out.Bytes())
	}
	raw, err := os.ReadFile(done.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	cert, properties := verify.Certificate(raw, n.Signer.Public(), nil)
	for _, p := range properties {
		if !p.Holds {
			t.Errorf("%s: %s", p.Name, p.Detail)
		}
	}
	for i, b := range cert.Backends {
		if b.Kind != realBackends[i] || b.Versions[b.Kind] == "" || !strings.HasPrefix(b.Image, "sha256:") {
			t.Errorf("backend %d is %+v", i, b)
		}
	}
	// What no longer differs between these kernels needs no exception.
	stale := parity.Stale(realBackends, cert.Exceptions)
	// How far a stream had come when it was cut may be the same on both by chance.
	stale = slices.DeleteFunc(stale, func(x parity.Exception) bool { return x.Field == "bytesIn" })
	if len(stale) > 0 {
		t.Errorf("exceptions that nothing made use of: %v", stale)
	}
	page, err := os.ReadFile(filepath.Join(c.Evidence, "parity-certificate.md"))
	if err != nil || !bytes.Contains(page, []byte("not a security boundary")) {
		t.Errorf("the page does not say what docker is: %v", err)
	}
	if !strings.Contains(out.String(), fmt.Sprintf("one verdict on %d backends", len(realBackends))) || strings.Contains(out.String(), "✗") {
		t.Errorf("shown:\n%s", out.Bytes())
	}
	leavesNothing(t, s)

	// Anyone checks it, with the key alone and no state directory.
	none := []string{"ENCLAVE_STATE=" + filepath.Join(t.TempDir(), "none")}
	said, err := enclaveCommand(t, none, "parity", "verify", done.Certificate, "--key", done.Key).CombinedOutput()
	if err != nil || strings.Count(string(said), "yes ") != 2 {
		t.Errorf("verify: %v, %s", err, said)
	}
	spoiled := filepath.Join(t.TempDir(), "spoiled.json")
	if err := os.WriteFile(spoiled, bytes.Replace(raw, []byte(`"pids_exceeded"`), []byte(`"cpu_exceeded"`), 1), 0o644); err != nil {
		t.Fatal(err)
	}
	said, err = enclaveCommand(t, none, "parity", "verify", spoiled, "--key", done.Key, "--json").CombinedOutput()
	if ended(t, err) != statusFailed || !strings.Contains(string(said), `"verified": false`) {
		t.Errorf("verify a changed one: %v, %s", err, said)
	}
	said, err = enclaveCommand(t, none, "parity", "verify", done.Certificate, "--key", notary(t).Signer.Public()).CombinedOutput()
	if ended(t, err) != statusFailed || !strings.Contains(string(said), "NO ") {
		t.Errorf("verify with another key: %v, %s", err, said)
	}
	said, err = enclaveCommand(t, none, "parity", "verify", done.Certificate, "--key", done.Key, "--log-key", "docker="+cert.Backends[0].LogKey).CombinedOutput()
	if ended(t, err) != statusFailed || !strings.Contains(string(said), "its log has another key") {
		t.Errorf("verify with another log's key: %v, %s", err, said)
	}
}

// A machine has the verdicts of the others. All workloads on it would take minutes
// on a busy host: make demo-parity has them.
func TestAMachineHasTheVerdictOfTheOthers(t *testing.T) {
	for machine, tc := range map[string]struct {
		others    []string
		isolation []string
		count     string
	}{
		"qemu":        {[]string{"gvisor", "docker"}, []string{"emulated", "microvm"}, "Three kernels."},
		"firecracker": {[]string{"gvisor"}, []string{"microvm"}, "Two kernels."},
	} {
		t.Run(machine, func(t *testing.T) {
			t.Parallel()
			testenv.Need(t, machine)
			c, s := onKernels(t, append(tc.others, machine)...)
			var out bytes.Buffer
			c.Out = &out
			n := notary(t)
			n.Only = []string{"credentials", "on-the-list", "limit-pids", "limit-memory", "limit-disk"}
			done, err := demo.Certify(t.Context(), c, n)
			if err != nil || !done.Passed || len(done.Workloads) != len(n.Only) {
				t.Fatalf("%v\n%s", err, out.Bytes())
			}
			if b := done.Backends[len(tc.others)]; !slices.Contains(tc.isolation, b.Isolation) || b.Versions[machine] == "" || !strings.Contains(b.Versions["guest kernel"], "sha256:") {
				t.Errorf("the machine is %+v", b)
			}
			if done.Certificate != "" || !strings.Contains(out.String(), tc.count) {
				t.Errorf("certificate %q, shown:\n%s", done.Certificate, out.Bytes())
			}
			leavesNothing(t, s)
		})
	}
}

// leavesNothing wants nothing of the control planes that were booted to be left.
func leavesNothing(t *testing.T, s *statedir.Dir) {
	t.Helper()
	if left, err := os.ReadDir(s.File("tmp")); err != nil || len(left) > 0 {
		t.Errorf("left in tmp: %v, %v", left, err)
	}
	if left, err := statedir.MountsBelow(s.Path); err != nil || len(left) > 0 {
		t.Errorf("mounts left: %q, %v", left, err)
	}
	for _, line := range processesNaming(t, s.Path) {
		t.Errorf("process left: %s", line)
	}
}

// One kernel on which denials are not recorded, or one request is not the same
// verdict, and there is no certificate.
func TestOneBrokenKernelIsNotCertified(t *testing.T) {
	t.Parallel()
	c, s := onKernels(t, "gvisor", "docker")
	var out bytes.Buffer
	c.Out = &out
	table, err := egress.Standard()
	if err != nil {
		t.Fatal(err)
	}
	real, err := gateway.New(gateway.Config{Resolver: elsewhere{}, Dialer: elsewhere{}, Table: table})
	if err != nil {
		t.Fatal(err)
	}
	boot := c.Boot
	c.Boot = func(ctx context.Context, b demo.Boot) (*demo.Plane, error) {
		if b.Backend == "docker" {
			b.Gateway = control.Gateway(brokenGate{Gateway: real, keep: func(t audit.Type) bool { return t != audit.EgressDenied }})
		}
		return boot(ctx, b)
	}
	n := notary(t)
	n.Only = []string{"clean", "credentials"}
	done, err := demo.Certify(t.Context(), c, n)
	var failed *demo.Failed
	if !errors.As(err, &failed) || done.Passed || done.Certificate != "" {
		t.Fatalf("it passed: %v\n%s", err, out.Bytes())
	}
	if !strings.Contains(failed.Error(), "credentials: docker: ") || !strings.Contains(out.String(), "NO PARITY") || done.Workloads[0].Failure != "" {
		t.Errorf("failures are %q:\n%s", failed.Failures, out.Bytes())
	}
	leavesNothing(t, s)
}

// Two servers of somebody else's, each with a key of its own.
func TestTwoServersAreComparedAndCertified(t *testing.T) {
	t.Parallel()
	host := testenv.Docker(t)
	keys, urls, logs := []string{}, []string{}, []string{}
	for _, b := range []string{"gvisor", "docker"} {
		env, _ := onGVisor(t)
		env = append(env, "ENCLAVE_BACKEND="+b, "ENCLAVE_DOCKER_HOST="+host)
		v := startServe(t, env)
		defer v.stop(t)
		key, err := enclaveCommand(t, env, "audit", "key").Output()
		if err != nil {
			t.Fatal(err)
		}
		urls, keys, logs = append(urls, b+"="+v.url), append(keys, b+"="+v.key), append(logs, b+"="+strings.TrimSpace(string(key)))
	}
	evidence := t.TempDir()
	env := []string{
		"ENCLAVE_STATE=" + filepath.Join(t.TempDir(), "state"), "ENCLAVE_BASE_URL=", "ENCLAVE_BACKEND=",
		"ENCLAVE_PARITY_BASE_URLS=" + strings.Join(urls, ","), "ENCLAVE_PARITY_API_KEYS=" + strings.Join(keys, ","),
	}
	out, err := enclaveCommand(t, env, "demo", "backend-parity", "--evidence", evidence).CombinedOutput()
	if err != nil {
		t.Fatalf("demo: %v, %s", err, out)
	}
	for _, want := range []string{"Same workload. Two kernels. One verdict.", "mode: real:multi  ·  backends: gvisor, docker", "parity proven across 2 backend(s)"} {
		if !bytes.Contains(out, []byte(want)) {
			t.Errorf("the demo does not show %q:\n%s", want, out)
		}
	}

	// The key of a remote log comes from its machine, or there is no certificate.
	out, err = enclaveCommand(t, env, "parity", "--evidence", evidence).CombinedOutput()
	if ended(t, err) != statusFailed || !bytes.Contains(out, []byte("--log-key gvisor=KEY")) {
		t.Errorf("without keys of the logs: %v, %s", err, out)
	}
	var done demo.Certified
	env = append(env, "ENCLAVE_PARITY_LOG_KEYS="+strings.Join(logs, ","))
	c := enclaveCommand(t, env, "parity", "--evidence", evidence, "--json")
	var shown bytes.Buffer
	c.Stderr = &shown
	raw, err := c.Output()
	if err != nil || json.Unmarshal(raw, &done) != nil || !done.Passed || done.Mode != parity.Remote {
		t.Fatalf("certificate: %v, %s, %s", err, raw, shown.Bytes())
	}
	notRun := 0
	for _, w := range done.Workloads {
		if w.NotRun != "" {
			notRun++
		}
	}
	if notRun != 3 || !strings.Contains(shown.String(), "3 not run") {
		t.Errorf("%d workloads were not run:\n%s", notRun, shown.Bytes())
	}
	out, err = enclaveCommand(t, env, "parity", "verify", done.Certificate, "--key", done.Key).CombinedOutput()
	if err != nil || strings.Count(string(out), "yes ") != 3 {
		t.Errorf("verify, with the logs' keys: %v, %s", err, out)
	}
	for _, secret := range keys {
		if _, key, _ := strings.Cut(secret, "="); bytes.Contains(raw, []byte(key)) || bytes.Contains(shown.Bytes(), []byte(key)) {
			t.Error("what is shown has a key")
		}
	}
}

// An interrupted run removes what it booted, and certifies nothing.
func TestInterruptedParityLeavesNothing(t *testing.T) {
	t.Parallel()
	env, s := onGVisor(t)
	evidence := t.TempDir()
	c := enclaveCommand(t, append(env, "ENCLAVE_BACKEND=", "ENCLAVE_DOCKER_HOST="+testenv.Docker(t)), "parity", "--evidence", evidence)
	stderr, err := c.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	in := bufio.NewReader(stderr)
	for !strings.Contains(said.String(), "on gvisor (2 of") {
		line, err := in.ReadString('\n')
		if said.WriteString(line); err != nil {
			t.Fatalf("it ended early: %v, %s", err, said.String())
		}
	}
	if err := c.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	rest, _ := io.ReadAll(in)
	if code := ended(t, c.Wait()); code != statusInt || !bytes.Contains(rest, []byte("nothing was certified")) || bytes.Contains(rest, []byte("canceled")) {
		t.Errorf("status %d: %s", code, rest)
	}
	if files, err := os.ReadDir(evidence); err != nil || len(files) > 0 {
		t.Errorf("evidence: %v, %v", files, err)
	}
	leavesNothing(t, s)
}
