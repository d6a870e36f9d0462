package store

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/session"
)

// crashEnv names the database that the test binary writes to, if it is set,
// until it is killed.
const crashEnv = "ENCLAVE_STORE_CRASH_TEST"

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashEnv); dir != "" {
		fmt.Fprintln(os.Stderr, writeForEver(dir))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// An ack says that the child was told that something is durable.
type ack struct {
	Session string        `json:"session"`
	Phase   session.Phase `json:"phase"`
	Count   uint64        `json:"count"` // of the last event that was recorded
	Number  uint64        `json:"number"`
}

// writeForEver runs sessions, as eight writers at once, and writes an ack to
// stdout after each step that succeeded.
func writeForEver(dir string) error {
	ctx := context.Background()
	private, err := os.ReadFile(filepath.Join(dir, "key"))
	if err != nil {
		return err
	}
	signer, err := audit.NewSigner(private)
	if err != nil {
		return err
	}
	witness, err := os.OpenFile(filepath.Join(dir, "witness"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	s, err := Open(ctx, filepath.Join(dir, "enclave.db"), Options{Every: time.Millisecond, Publish: func(c []byte) error {
		line, err := json.Marshal(string(c))
		if err != nil {
			return err
		}
		_, err = witness.Write(append(line, '\n'))
		return err
	}})
	if err != nil {
		return err
	}
	failed := make(chan error, 10)
	go func() { failed <- s.Sequence(ctx, signer) }()
	var mu sync.Mutex
	say := func(a ack) error {
		line, err := json.Marshal(a)
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		_, err = os.Stdout.Write(append(line, '\n'))
		return err
	}
	for range 8 {
		go func() {
			for {
				if err := oneSession(ctx, s, say); err != nil {
					failed <- err
					return
				}
			}
		}()
	}
	return <-failed
}

func oneSession(ctx context.Context, s *Store, say func(ack) error) error {
	number, err := s.NextNumber(ctx, "acme")
	if err != nil {
		return err
	}
	id := fmt.Sprintf("s-abcdef-%d", number)
	n, err := s.Create(ctx, session.Session{ID: id, Org: "acme", Phase: session.Pending}, session.Work{Code: id}, audit.Data{})
	if err != nil {
		return err
	}
	a := ack{id, n.Phase, 0, number}
	if err := say(a); err != nil {
		return err
	}
	n.Phase = session.Running
	if n, err = s.Commit(ctx, n, nil, audit.Event{Type: audit.SandboxStarted}); err != nil {
		return err
	}
	a.Phase = n.Phase
	for i := range 5 {
		if err := say(a); err != nil {
			return err
		}
		a.Count = uint64(i) + 1
		if err := s.Record(ctx, id, audit.EgressDenied, audit.Data{Host: "x", Count: a.Count}); err != nil {
			return err
		}
	}
	if err := say(a); err != nil {
		return err
	}
	n.Phase = session.Succeeded
	n, err = s.Commit(ctx, n, &session.Collected{Stdout: session.Text{[]byte(id)}}, audit.Event{Type: audit.ResultCollected},
		audit.Event{Type: audit.WorkloadExited, Data: audit.Data{Outcome: "succeeded"}}, audit.Event{Type: audit.UsageMetered})
	if err != nil {
		return err
	}
	a.Phase = n.Phase
	return say(a)
}

// A process that is killed at any moment has lost nothing that it was told is
// durable, and left no half of anything. (A kill leaves the kernel's cache, so
// this is not a power cut: for that see the torn log and the PRAGMAs.)
func TestKilledProcessLosesNothingAcknowledged(t *testing.T) {
	dir := t.TempDir()
	private, public, err := audit.GenerateKey(nil, "log.example/a")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "key"), private, 0o600); err != nil {
		t.Fatal(err)
	}
	signer, err := audit.NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(3, 4))
	acked := map[string]ack{}
	acks, number := 0, uint64(0)
	for round := range 12 {
		for _, a := range killedAfter(t, dir, 1+rnd.IntN(400)) {
			acked[a.Session] = a // in the order in which they were said
			number = max(number, a.Number)
			acks++
		}
		s := open(t, filepath.Join(dir, "enclave.db"), Options{Every: never})
		for id, a := range acked {
			checkSession(t, s, id, a)
		}
		if n, err := s.NextNumber(t.Context(), "acme"); err != nil || n <= number {
			t.Errorf("round %d: number %d, %v, after %d", round, n, err, number)
		}
		checkWitness(t, s, dir, signer)
		for id := range acked {
			verified(t, s, id, public)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if acks < 500 || len(acked) < 50 {
		t.Errorf("only %d acknowledgements of %d sessions were seen", acks, len(acked))
	}
	t.Logf("%d acknowledgements of %d sessions in 12 kills", acks, len(acked))
}

// killedAfter starts a writer in dir, kills it once it has acknowledged n
// steps, and returns all that it acknowledged.
func killedAfter(t *testing.T, dir string, n int) []ack {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), crashEnv+"="+dir)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var acks []ack
	r := bufio.NewReader(out)
	for {
		line, err := r.ReadBytes('\n')
		if err != nil {
			break // what has no newline was not said
		}
		var a ack
		if err := json.Unmarshal(line, &a); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if acks = append(acks, a); len(acks) == n {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != -1 || len(acks) < n {
		t.Fatalf("the writer ended by itself after %d acks: %v: %s", len(acks), err, stderr.String())
	}
	return acks
}

// checkSession fails unless a session has what was acknowledged, and a record
// that belongs to its phase.
func checkSession(t *testing.T, s *Store, id string, a ack) {
	t.Helper()
	n, err := s.Session(t.Context(), "acme", id)
	if err != nil {
		t.Fatalf("session %s, acknowledged in %s: %v", id, a.Phase, err)
	}
	all := record(t, s, id)
	if err := audit.CheckOrder(all); err != nil {
		t.Errorf("session %s: %v", id, err)
	}
	has := map[audit.Type]bool{}
	last := uint64(0)
	for _, e := range all {
		has[e.Type] = true
		last = max(last, e.Data.Count)
	}
	if last < a.Count {
		t.Errorf("session %s has %d recorded events, %d were acknowledged", id, last, a.Count)
	}
	if (a.Phase == session.Running && n.Phase == session.Pending) || (a.Phase.Ended() && !n.Phase.Ended()) {
		t.Errorf("session %s is %s, %s was acknowledged", id, n.Phase, a.Phase)
	}
	if has[audit.SandboxStarted] != (n.Phase != session.Pending) || has[audit.UsageMetered] != n.Phase.Ended() {
		t.Errorf("session %s is %s, its record has %d events", id, n.Phase, len(all))
	}
	r, err := s.Output(t.Context(), "acme", id, 0, 0, 100)
	if n.Phase.Ended() != (err == nil) || err == nil && string(r.Stdout) != id {
		t.Errorf("session %s is %s, its result %q, %v", id, n.Phase, r.Stdout, err)
	}
	if w, err := s.Work(t.Context(), "acme", id); err != nil || w.Code != id {
		t.Errorf("session %s has work %q, %v", id, w.Code, err)
	}
}

// checkWitness fails unless every checkpoint that was ever published is a
// beginning of the log, which it has continued.
func checkWitness(t *testing.T, s *Store, dir string, signer *audit.Signer) {
	t.Helper()
	sequenceOnce(t, s, signer)
	newest, err := s.Checkpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	size := tree(t, s, signer.Public())
	data, err := os.ReadFile(filepath.Join(dir, "witness"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		var c string
		if json.Unmarshal([]byte(line), &c) != nil {
			continue // cut off by a kill
		}
		old, err := audit.OpenCheckpoint([]byte(c), signer.Public())
		if err != nil {
			t.Fatal(err)
		}
		proof, err := proveTree(t.Context(), s.reads, old.N, size)
		if err != nil {
			t.Fatal(err)
		}
		if err := audit.VerifyConsistency([]byte(c), newest, proof, signer.Public()); err != nil {
			t.Fatal(err)
		}
	}
}
