// Package observe is what an operator sees of a running control plane from
// outside: metrics for Prometheus, traces for OpenTelemetry, and a logger whose
// lines are one line each.
//
// It decides nothing, and nobody waits for it: what can't be counted or sent is
// dropped. No label, attribute or line of it is made by a workload: labels come
// from closed lists, and what is on none of them is counted as "other", so that
// no tenant can make series without end.
package observe

import (
	"errors"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/enclave-run/enclave/internal/control"
	"github.com/enclave-run/enclave/internal/session"
)

// Metrics counts what a control plane does. It is a control.Observer and what
// httpapi, store and webhook tell their numbers to. All its methods may be
// called concurrently.
type Metrics struct {
	registry *prometheus.Registry

	sessions        *prometheus.CounterVec
	waited, started prometheus.Histogram
	life            prometheus.Histogram
	attempts        *prometheus.CounterVec
	limits          *prometheus.CounterVec
	cpu             prometheus.Counter
	bytes           *prometheus.CounterVec
	output          prometheus.Counter
	destroyFailures prometheus.Counter

	requests       *prometheus.CounterVec
	requestSeconds *prometheus.HistogramVec
	streams        prometheus.Gauge

	commitSeconds prometheus.Histogram
	commitBatch   prometheus.Histogram

	deliveries *prometheus.CounterVec
}

// The lists that labels come from. "" is a value that is not there.
var (
	outcomes    = []string{string(session.Succeeded), string(session.Failed), string(session.Killed)}
	killReasons = []string{"", string(session.PidsExceeded), string(session.MemoryExceeded), string(session.CPUExceeded),
		string(session.WallClockExceeded), string(session.DiskExceeded), string(session.OutputExceeded), string(session.EgressExceeded),
		string(session.IdleTimeout), string(session.Cancelled), string(session.BackendLost)}
	resources = []string{"pidsLimit", "memoryMb", "cpuSeconds", "wallSeconds", "diskMb", "outputBytes", "egressBytes"}
	reasons   = []string{"not_allowed", "reserved_address", "bad_host", "no_address", "name_mismatch", "encrypted_name", "protocol",
		"method_or_path", "binding_not_granted", "upstream_tls", "budget", "floor", "allowed"}
	protocols = []string{"tcp", "udp", "icmp", "dns"}
	methods   = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
)

// other is the label of what is on no list.
const other = "other"

// of returns v if list has it, else "other".
func of(list []string, v string) string {
	if slices.Contains(list, v) {
		return v
	}
	return other
}

// seconds are the bounds of durations from a millisecond to minutes, and brief
// those of what should take milliseconds.
var (
	seconds = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 1800}
	brief   = []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}
)

// NewMetrics returns Metrics that have counted nothing. version and backend are
// those of the program, for enclave_build_info.
func NewMetrics(version, backend string) (*Metrics, error) {
	m := &Metrics{registry: prometheus.NewRegistry()}
	var errs []error
	register := func(c prometheus.Collector) {
		errs = append(errs, m.registry.Register(c))
	}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
		register(c)
		return c
	}
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
		register(c)
		return c
	}
	histogram := func(name, help string, buckets []float64) prometheus.Histogram {
		h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets})
		register(h)
		return h
	}
	register(collectors.NewGoCollector())
	register(collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	info := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "enclave_build_info", Help: "Always 1; its labels say which program this is."}, []string{"version", "backend"})
	register(info)
	info.WithLabelValues(version, backend).Set(1)

	m.sessions = counters("enclave_sessions_total", "Sessions that have ended, by outcome and kill reason.", "outcome", "kill_reason")
	m.waited = histogram("enclave_queue_wait_seconds", "How long a session waited for a place.", seconds)
	m.started = histogram("enclave_sandbox_start_seconds", "How long a sandbox took from a free place until it could be given work.", seconds)
	m.life = histogram("enclave_session_seconds", "How long a session took from its creation to its end.", seconds)
	m.attempts = counters("enclave_egress_decisions_total", "Attempts of workloads to reach something.", "decision", "reason", "protocol")
	m.limits = counters("enclave_limit_kills_total", "Sessions that were killed for a limit, by limit.", "resource")
	m.cpu = counter("enclave_usage_cpu_seconds_total", "CPU time that ended sessions used.")
	m.bytes = counters("enclave_usage_network_bytes_total", "Payload that ended sessions received (in) and sent (out).", "direction")
	m.output = counter("enclave_usage_output_bytes_total", "Bytes that ended sessions wrote to stdout and stderr.")
	m.destroyFailures = counter("enclave_sandbox_destroy_failures_total", "Tries that did not destroy a sandbox; each is followed by another.")
	m.requests = counters("enclave_http_requests_total", "Requests that were answered.", "route", "method", "status")
	m.requestSeconds = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "enclave_http_request_seconds", Help: "How long a request took, streams left out.", Buckets: brief}, []string{"route"})
	register(m.requestSeconds)
	m.streams = prometheus.NewGauge(prometheus.GaugeOpts{Name: "enclave_http_streams", Help: "Event streams that are open."})
	register(m.streams)
	m.commitSeconds = histogram("enclave_store_commit_seconds", "How long a transaction took, flushed to disk.", brief)
	m.commitBatch = histogram("enclave_store_commit_batch_size", "Writes that shared a transaction.", []float64{1, 2, 4, 8, 16, 32, 64, 128, 256})
	m.deliveries = counters("enclave_webhook_deliveries_total", "Attempts to deliver a webhook, by what came of it.", "result")
	return m, errors.Join(errs...)
}

// Handler serves the metrics, to anyone: they name no tenant, no session and
// nothing that a workload wrote.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

// Waited implements control.Observer.
func (m *Metrics) Waited(d time.Duration) { m.waited.Observe(d.Seconds()) }

// Started implements control.Observer.
func (m *Metrics) Started(d time.Duration) { m.started.Observe(d.Seconds()) }

// Attempted implements control.Observer.
func (m *Metrics) Attempted(a control.Attempt) {
	decision := "denied"
	if a.Allowed {
		decision = "allowed"
	}
	m.attempts.WithLabelValues(decision, of(reasons, a.Reason), of(protocols, a.Protocol)).Add(float64(a.Count))
}

// Ended implements control.Observer.
func (m *Metrics) Ended(e control.End) {
	m.sessions.WithLabelValues(of(outcomes, string(e.Outcome)), of(killReasons, string(e.KillReason))).Inc()
	m.life.Observe(e.Life.Seconds())
	if e.Resource != "" {
		m.limits.WithLabelValues(of(resources, e.Resource)).Inc()
	}
	// What a broken gateway or clock reports as negative is no reason to panic.
	m.cpu.Add(max(0, e.CPUSeconds))
	m.bytes.WithLabelValues("in").Add(float64(max(0, e.BytesIn)))
	m.bytes.WithLabelValues("out").Add(float64(max(0, e.BytesOut)))
	m.output.Add(float64(max(0, e.Output)))
}

// DestroyFailed implements control.Observer.
func (m *Metrics) DestroyFailed() { m.destroyFailures.Inc() }

// Answered counts a request. route is the pattern that matched, "" if none did.
func (m *Metrics) Answered(route, method string, status int, d time.Duration, stream bool) {
	if route == "" {
		route = "none"
	}
	m.requests.WithLabelValues(route, of(methods, method), strconv.Itoa(status)).Inc()
	if !stream {
		m.requestSeconds.WithLabelValues(route).Observe(d.Seconds())
	}
}

// Streams counts a stream that opened (1) or ended (-1).
func (m *Metrics) Streams(change int) { m.streams.Add(float64(change)) }

// Committed counts a transaction of the store and the writes that shared it.
func (m *Metrics) Committed(writes int, took time.Duration) {
	m.commitSeconds.Observe(took.Seconds())
	m.commitBatch.Observe(float64(writes))
}

// Delivered counts an attempt to deliver a webhook. result is of a closed list.
func (m *Metrics) Delivered(result string) {
	m.deliveries.WithLabelValues(of([]string{"delivered", "retried", "gave_up"}, result)).Inc()
}
