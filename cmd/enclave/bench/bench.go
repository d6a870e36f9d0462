// Package bench measures what Enclave costs, against what it stands on, in one
// run on one machine: shared machines are noisy, so a figure means little and a
// ratio of two that were taken in turn means much. It asserts nothing.
package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/backend/all"
	"github.com/enclave-run/enclave/internal/evidence"
	"github.com/enclave-run/enclave/internal/server"
)

// Config is what the measurements need. All fields are required but Docker and
// Machine, which are for backends that are not missing.
type Config struct {
	Out, Err io.Writer
	Evidence string // directory for bench.json
	Temp     string // directory that nobody else can change: root runs what is put there
	Boot     func(context.Context, server.Boot) (*server.Booted, error)
	Runsc    string // the program that the backend starts
	Rootfs   string // the image, unpacked
	Runs     int    // of each command that is compared
	Docker   string // address of the Docker daemon, for its own client
	Machine  Machine
	// Missing says why a backend can't run here. Its measurements are not run.
	Missing map[string]string
	Only    []string
}

// A Result is one row. Value and Against are in Unit; Ratio is the one divided
// by the other. Without a counterpart both are null.
type Result struct {
	Name    string   `json:"name"`
	Value   float64  `json:"value"`
	Unit    string   `json:"unit"` // ms, 1/s, Gbit/s, or MB of 10^6 bytes
	Against *float64 `json:"against"`
	Ratio   *float64 `json:"ratio"`

	note string
}

// A Report is evidence/bench.json.
type Report struct {
	Machine string   `json:"machine"`
	Results []Result `json:"results"`
}

// A measure produces rows. What can't be measured here says why in a skip.
type measure struct {
	name string
	run  func(context.Context, Config) ([]Result, error)
}

// skip says why a measurement was not taken. It is not a failure.
type skip string

func (s skip) Error() string { return string(s) }

var measures = []measure{
	{"cold_run_vs_runsc", coldRun},
	{"cold_run_vs_docker", coldDocker},
	{"cold_run_on_docker", coldOnDocker},
	{"cold_run_on_qemu", coldOnQEMU},
	{"gateway_throughput", throughput},
	{"gateway_added_latency", latency},
	{"idle_session_pss", func(ctx context.Context, c Config) ([]Result, error) {
		return idleMemory(ctx, c, "idle_session_pss", "gvisor", 10)
	}},
	{"idle_docker_session_pss", func(ctx context.Context, c Config) ([]Result, error) {
		return idleMemory(ctx, c, "idle_docker_session_pss", "docker", 10)
	}},
	{"idle_qemu_session_pss", func(ctx context.Context, c Config) ([]Result, error) {
		return idleMemory(ctx, c, "idle_qemu_session_pss", "qemu", 3)
	}},
	{"burst_100", burst},
	{"plane_live", planeAlone},
	{"api_overhead", apiOverhead},
	{"stream_fan_out", fanOut},
	{"restart_10k_sessions", restart},
	{"verify_log_1m_events", verifyLog},
}

// Run takes all measurements, or those of c.Only, prints a row for each and
// writes the report.
func Run(ctx context.Context, c Config) error { return take(ctx, c, measures) }

func take(ctx context.Context, c Config, measures []measure) error {
	rep := Report{Machine: machine(), Results: []Result{}}
	fmt.Fprintf(c.Out, "%s\n\n%-24s %12s %12s %8s\n", rep.Machine, "", "enclave", "against", "ratio")
	for _, m := range measures {
		if len(c.Only) > 0 && !slices.Contains(c.Only, m.name) {
			continue
		}
		fmt.Fprintf(c.Err, "measuring %s\n", m.name)
		rows, err := m.run(ctx, c)
		var s skip
		switch {
		case errors.As(err, &s):
			fmt.Fprintf(c.Out, "%-24s not run: %s\n", m.name, s)
			continue
		case err != nil:
			return fmt.Errorf("%s: %w", m.name, err)
		}
		for _, r := range rows {
			fmt.Fprintln(c.Out, strings.TrimRight(r.line(), " "))
		}
		rep.Results = append(rep.Results, rows...)
	}
	raw, err := json.MarshalIndent(rep, "", "  ")
	if err != nil {
		return err
	}
	if err := evidence.Write(c.Evidence, "bench.json", append(raw, '\n')); err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.Out, "\nwritten to %s\n", filepath.Join(c.Evidence, "bench.json"))
	return err
}

func (r Result) line() string {
	against, ratio := "", ""
	if r.Against != nil {
		against, ratio = fmt.Sprintf("%.3g %s", *r.Against, r.Unit), fmt.Sprintf("%.2f", *r.Ratio)
	}
	return fmt.Sprintf("%-24s %12s %12s %8s  %s", r.Name, fmt.Sprintf("%.3g %s", r.Value, r.Unit), against, ratio, r.note)
}

func compared(name string, value, against float64, unit, note string) Result {
	ratio := value / against
	return Result{Name: name, Value: value, Unit: unit, Against: &against, Ratio: &ratio, note: note}
}

func alone(name string, value float64, unit, note string) Result {
	return Result{Name: name, Value: value, Unit: unit, note: note}
}

// machine describes where the figures were taken.
func machine() string {
	var model, mem string
	if raw, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(raw)) {
			if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
				model = strings.TrimSpace(v)
				break
			}
		}
	}
	if raw, err := os.ReadFile("/proc/meminfo"); err == nil {
		var kb int64
		if _, err := fmt.Sscanf(string(raw), "MemTotal: %d kB", &kb); err == nil {
			mem = fmt.Sprintf("%d GB", kb*1024/1e9)
		}
	}
	kernel := "Linux"
	if raw, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		kernel += " " + strings.TrimSpace(string(raw))
	}
	return fmt.Sprintf("%d × %s, %s, %s, %s/%s, %s", runtime.NumCPU(), model, mem, kernel, runtime.GOOS, runtime.GOARCH, runtime.Version())
}

// median of durations, in milliseconds.
func median(ds []time.Duration) float64 {
	slices.Sort(ds)
	return float64(ds[len(ds)/2].Microseconds()) / 1000
}

const hello = "print('hello')"

// runOne runs req to its end and wants it to succeed.
func runOne(ctx context.Context, p *server.Booted, req enclave.SessionRequest) (enclave.Result, error) {
	h, err := p.Client.Run(ctx, req)
	if err != nil {
		return enclave.Result{}, err
	}
	r, err := h.Result(ctx)
	if err != nil {
		return enclave.Result{}, err
	}
	s, err := h.Refresh(ctx)
	if err != nil {
		return enclave.Result{}, err
	}
	if s.Outcome != enclave.Succeeded {
		return enclave.Result{}, fmt.Errorf("session %s ended as %s %s: %s", s.ID, s.Outcome, s.KillReason, r.Stderr)
	}
	return r, nil
}

// pair times a and b in turn.
func pair(n int, a, b func() error) (as, bs []time.Duration, err error) {
	for i := range n + 1 {
		for _, side := range []struct {
			f  func() error
			ds *[]time.Duration
		}{{a, &as}, {b, &bs}} {
			start := time.Now()
			if err := side.f(); err != nil {
				return nil, nil, err
			}
			if i > 0 { // the first of each warms the caches
				*side.ds = append(*side.ds, time.Since(start))
			}
		}
	}
	return as, bs, nil
}

// burst starts 100 sessions at once and waits for the last result.
func burst(ctx context.Context, c Config) ([]Result, error) {
	p, err := c.Boot(ctx, server.Boot{Kind: all.Default()})
	if err != nil {
		return nil, err
	}
	defer p.Close(context.WithoutCancel(ctx))
	const n, single = 100, 5
	var one []time.Duration
	for range single {
		start := time.Now()
		if _, err := runOne(ctx, p, enclave.SessionRequest{Code: hello}); err != nil {
			return nil, err
		}
		one = append(one, time.Since(start))
	}
	errs := make(chan error, n)
	start := time.Now()
	for range n {
		go func() {
			_, err := runOne(ctx, p, enclave.SessionRequest{Code: hello})
			errs <- err
		}()
	}
	for range n {
		err = errors.Join(err, <-errs)
	}
	if err != nil {
		return nil, err
	}
	total := float64(time.Since(start).Milliseconds())
	return []Result{compared("burst_100", total, n*median(one), "ms", "100 sessions at once, to the last result; against one after another")}, nil
}

// boot starts a control plane of the kind of backend of that name.
func (c Config) boot(ctx context.Context, backend string) (*server.Booted, error) {
	k, err := all.Named(backend)
	if err != nil {
		return nil, err
	}
	return c.Boot(ctx, server.Boot{Kind: k})
}
