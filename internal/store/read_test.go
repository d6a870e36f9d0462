package store

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/enclave-run/enclave/internal/audit"
)

// BenchmarkStreamRead measures what each turn of a session's stream reads, with a
// thousand readers at once.
func BenchmarkStreamRead(b *testing.B) {
	s := open(b, filepath.Join(b.TempDir(), "enclave.db"), Options{})
	const sessions = 100
	for i := range sessions {
		n := newSession(b, s, fmt.Sprintf("s-%d", i))
		runSession(b, s, n)
		for range 5 {
			if err := s.Record(b.Context(), n.ID, audit.EgressDenied, audit.Data{Host: "evil.example.com", Protocol: "dns", Reason: "not_allowed", Count: 1}); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.SetParallelism(500) // of each of two processors
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			id := fmt.Sprintf("s-%d", i%sessions)
			if _, err := s.Session(b.Context(), "acme", id); err != nil {
				b.Error(err)
			}
			if _, err := s.Events(b.Context(), "acme", id, 6, 500); err != nil {
				b.Error(err)
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "turns/s")
}
