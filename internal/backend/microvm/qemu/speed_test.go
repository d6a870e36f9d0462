package qemu

import (
	"testing"
	"time"
)

// BenchmarkStart measures how long a machine takes from the start of its process
// until the API answers, until QEMU runs the guest, and until the guest's kernel
// has gone through its own start and found no root: what is left after that is
// the guest program's.
func BenchmarkStart(b *testing.B) {
	var answered, running, booted time.Duration
	for b.Loop() {
		dir := vmFiles(b)
		began := time.Now()
		v := serve(b, dir)
		if _, err := v.Instance(b.Context()); err != nil {
			b.Fatal(err)
		}
		answered += time.Since(began)
		v.configure(b)
		if err := v.Start(b.Context()); err != nil {
			b.Fatal(err)
		}
		running += time.Since(began)
		if said := v.ended(b); v.err != nil {
			b.Fatal(said)
		}
		booted += time.Since(began)
	}
	for name, d := range map[string]time.Duration{"ms-api": answered, "ms-running": running, "ms-booted": booted} {
		b.ReportMetric(float64(d.Milliseconds())/float64(b.N), name)
	}
}
