package observe

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/enclave-run/enclave/internal/control"
	"github.com/enclave-run/enclave/internal/egress"
	"github.com/enclave-run/enclave/internal/session"
)

func metrics(t *testing.T) *Metrics {
	t.Helper()
	m, err := NewMetrics("test", "simulator")
	if err != nil {
		t.Fatal(err)
	}
	err = m.Ask(Asked{
		Census: func() control.Census { return control.Census{Waiting: 1, Starting: 2, Running: 3, Ending: 4} },
		Reserved: func() []control.Reservation {
			return []control.Reservation{{Resource: "memory", Reserved: 6, Capacity: 7}}
		},
		Broken: func() bool { return true }, Unsigned: func() int64 { return 5 }, Now: time.Now,
		Checkpoint: func(context.Context) ([]byte, error) { return []byte("enclave/log\n285\nabc=\n\n— log sig\n"), nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// shown returns the lines of our own metrics.
func shown(t *testing.T, m *Metrics) []string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	b, err := io.ReadAll(w.Body)
	if err != nil || w.Code != 200 {
		t.Fatalf("%d %v", w.Code, err)
	}
	var lines []string
	for s := bufio.NewScanner(strings.NewReader(string(b))); s.Scan(); {
		if strings.HasPrefix(s.Text(), "enclave_") {
			lines = append(lines, s.Text())
		}
	}
	return lines
}

func TestNamesAreAsPrometheusWantsThem(t *testing.T) {
	m := metrics(t)
	hostile(m)
	problems, err := testutil.GatherAndLint(m.registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "enclave_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}

// hostile tells m what a workload, a client or a gateway that was taken over
// could have it told.
func hostile(m *Metrics) {
	for i := range 10_000 {
		text := fmt.Sprintf("x%d\n\"}{\x1b[2J\xff", i)
		m.Attempted(control.Attempt{Allowed: i%2 == 0, Reason: text, Protocol: text, Count: 1})
		m.Ended(control.End{Outcome: session.Phase(text), KillReason: session.KillReason(text), Resource: text, CPUSeconds: -1, BytesIn: -1, BytesOut: -1, Output: -1})
		m.Answered("", text, 404, time.Millisecond, false)
		m.Delivered(text)
	}
}

func TestNothingThatIsToldMakesSeriesWithoutEnd(t *testing.T) {
	m := metrics(t)
	hostile(m)
	before := len(shown(t, m))
	hostile(m)
	after := shown(t, m)
	if len(after) != before {
		t.Errorf("%d lines became %d", before, len(after))
	}
	for _, l := range after {
		if strings.Contains(l, "x1") || strings.ContainsRune(l, 0x1b) {
			t.Errorf("a hostile text is shown: %q", l)
		}
	}
}

// Every value that the product has is shown as itself, and not as other.
func TestEveryKnownValueHasASeriesOfItsOwn(t *testing.T) {
	m := metrics(t)
	for _, r := range []egress.Reason{egress.NotAllowed, egress.ReservedAddress, egress.BadHost, egress.NoAddress, egress.NameMismatch, egress.EncryptedName,
		egress.BadProtocol, egress.MethodOrPath, egress.BindingNotGranted, egress.UpstreamTLS, egress.OverBudget, egress.Floor, egress.Allowed} {
		m.Attempted(control.Attempt{Reason: string(r), Protocol: "tcp", Count: 1})
	}
	for _, k := range []session.KillReason{"", session.PidsExceeded, session.MemoryExceeded, session.CPUExceeded, session.WallClockExceeded, session.DiskExceeded,
		session.OutputExceeded, session.EgressExceeded, session.IdleTimeout, session.Cancelled, session.BackendLost} {
		m.Ended(control.End{Outcome: session.Killed, KillReason: k})
	}
	for _, r := range []string{"pidsLimit", "memoryMb", "cpuSeconds", "wallSeconds", "diskMb", "outputBytes", "egressBytes"} {
		m.Ended(control.End{Outcome: session.Killed, Resource: r})
	}
	all := strings.Join(shown(t, m), "\n")
	if strings.Contains(all, `"other"`) {
		t.Errorf("a known value is counted as other:\n%s", all)
	}
	for _, want := range []string{
		`enclave_egress_decisions_total{decision="denied",reason="not_allowed",protocol="tcp"} 1`,
		`enclave_sessions{phase="pending"} 3`, `enclave_sessions{phase="running"} 3`, `enclave_queue_waiting 1`,
		`enclave_reserved{resource="memory"} 6`, `enclave_capacity{resource="memory"} 7`,
		`enclave_store_broken 1`, `enclave_log_size 285`, `enclave_log_unsigned_events 5`, `enclave_build_info{backend="simulator",version="test"} 1`,
	} {
		if !strings.Contains(strings.ReplaceAll(all, `decision="denied",protocol="tcp",reason="not_allowed"`, `decision="denied",reason="not_allowed",protocol="tcp"`), want) {
			t.Errorf("no %s in\n%s", want, all)
		}
	}
}

func TestTheAgeOfTheCheckpointIsThatOfWhatWaits(t *testing.T) {
	now := time.Unix(1_790_000_000, 0)
	s := &scrape{asked: Asked{Now: func() time.Time { return now }}}
	for _, c := range []struct {
		size, unsigned int64
		want           time.Duration
	}{
		{10, 0, 0}, {10, 0, 0}, {10, 3, 10 * time.Second}, {10, 3, 20 * time.Second}, {13, 1, 0}, {13, 1, 10 * time.Second}, {14, 0, 0},
	} {
		if got := s.age(c.size, c.unsigned); got != c.want {
			t.Errorf("%d events, %d unsigned: %s, want %s", c.size, c.unsigned, got, c.want)
		}
		now = now.Add(10 * time.Second)
	}
}
