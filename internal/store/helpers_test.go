package store

import (
	"context"
	"runtime"
	"testing"

	"github.com/enclave-run/enclave/internal/audit"
)

func zeroData() audit.Data { return audit.Data{} }

// testSigner makes a new signer of the log "log.example/a".
func testSigner(t testing.TB) *audit.Signer {
	t.Helper()
	private, _, err := audit.GenerateKey(nil, "log.example/a")
	if err != nil {
		t.Fatal(err)
	}
	s, err := audit.NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// sequencing returns once Sequence runs. It runs until stop is called, which
// returns its error.
func sequencing(t testing.TB, s *Store, signer *audit.Signer) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Sequence(ctx, signer) }()
	var err error
	stopped := false
	for running := false; !running && !stopped; runtime.Gosched() {
		s.seqMu.Lock()
		running = s.seqEnd != nil
		s.seqMu.Unlock()
		select {
		case err = <-ended:
			stopped = true
		default:
		}
	}
	stop = func() error {
		cancel()
		if !stopped {
			err, stopped = <-ended, true
		}
		return err
	}
	t.Cleanup(func() { stop() })
	return stop
}

// sequenceOnce has everything that is committed signed.
func sequenceOnce(t testing.TB, s *Store, signer *audit.Signer) {
	t.Helper()
	if err := sequencing(t, s, signer)(); err != nil {
		t.Fatal(err)
	}
}
