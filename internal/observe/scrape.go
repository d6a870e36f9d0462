package observe

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/enclave-run/enclave/internal/control"
)

// Asked is what is asked each time someone reads the metrics. All are required.
type Asked struct {
	Census func() control.Census
	// Reserved is what sessions may take of the host, and what it has for them.
	Reserved func() []control.Reservation
	// Broken reports whether the store refuses to write.
	Broken func() bool
	// Unsigned is how many events no checkpoint covers yet.
	Unsigned func() int64
	// Now is the clock.
	Now func() time.Time
	// Checkpoint returns the newest checkpoint of the log, a signed note.
	Checkpoint func(context.Context) ([]byte, error)
}

// Ask has the gauges that a are the sources of registered.
func (m *Metrics) Ask(a Asked) error {
	if a.Census == nil || a.Reserved == nil || a.Broken == nil || a.Unsigned == nil || a.Now == nil || a.Checkpoint == nil {
		return errors.New("observe: gauges without a source")
	}
	return m.registry.Register(&scrape{asked: a})
}

var (
	sessionsDesc = prometheus.NewDesc("enclave_sessions", "Sessions that have not ended or still have a sandbox, by phase.", []string{"phase"}, nil)
	waitingDesc  = prometheus.NewDesc("enclave_queue_waiting", "Sessions that wait for a place.", nil, nil)
	reservedDesc = prometheus.NewDesc("enclave_reserved", "What sessions have reserved of the host, in bytes of memory and disk, or in numbers.", []string{"resource"}, nil)
	capacityDesc = prometheus.NewDesc("enclave_capacity", "What the host has for sessions, likewise; of the disk, what is free.", []string{"resource"}, nil)
	brokenDesc   = prometheus.NewDesc("enclave_store_broken", "1 if the store refuses to write, else 0.", nil, nil)
	logSizeDesc  = prometheus.NewDesc("enclave_log_size", "Events under the newest checkpoint.", nil, nil)
	logAgeDesc   = prometheus.NewDesc("enclave_log_checkpoint_age_seconds",
		"How long events have waited for a checkpoint, as far as scrapes saw; 0 if none waits.", nil, nil)
	unsignedDesc = prometheus.NewDesc("enclave_log_unsigned_events", "Events that no checkpoint covers yet.", nil, nil)
)

// A scrape asks its sources whenever it is collected.
type scrape struct {
	asked Asked

	mu    sync.Mutex
	size  int64     // of the log, when it was last seen to grow
	since time.Time // when it grew, or had nothing left to sign
}

func (s *scrape) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{sessionsDesc, waitingDesc, reservedDesc, capacityDesc, brokenDesc, logSizeDesc, logAgeDesc, unsignedDesc} {
		ch <- d
	}
}

func (s *scrape) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	c := s.asked.Census()
	gauge(sessionsDesc, float64(c.Waiting+c.Starting), "pending")
	gauge(sessionsDesc, float64(c.Running), "running")
	gauge(sessionsDesc, float64(c.Ending), "ending")
	gauge(waitingDesc, float64(c.Waiting))
	for _, r := range s.asked.Reserved() {
		gauge(reservedDesc, float64(r.Reserved), r.Resource)
		gauge(capacityDesc, float64(r.Capacity), r.Resource)
	}
	broken := 0.0
	if s.asked.Broken() {
		broken = 1
	}
	gauge(brokenDesc, broken)

	unsigned := s.asked.Unsigned()
	gauge(unsignedDesc, float64(unsigned))
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	size := int64(0)
	if note, err := s.asked.Checkpoint(ctx); err == nil {
		size = sizeOf(note)
	}
	gauge(logSizeDesc, float64(size))
	gauge(logAgeDesc, s.age(size, unsigned).Seconds())
}

// age returns how long the log has not grown though there is what it should
// grow by.
func (s *scrape) age(size, unsigned int64) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.asked.Now()
	if size != s.size || unsigned == 0 || s.since.IsZero() {
		s.size, s.since = size, now
	}
	return max(0, now.Sub(s.since))
}

// sizeOf returns the size in a checkpoint: its second line
// (https://c2sp.org/tlog-checkpoint). Who verifies one uses package audit.
func sizeOf(checkpoint []byte) int64 {
	lines := strings.SplitN(string(checkpoint), "\n", 3)
	if len(lines) < 3 {
		return 0
	}
	n, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil {
		return 0
	}
	return n
}
