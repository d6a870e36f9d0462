package crash

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// rotates reaches a failpoint by rotating the log's key. Whatever stops that, the
// log goes on, there is one key again, and who pinned the first public key
// verifies all of it.
func rotates(s *site, _ *journal, arm string) *server {
	s.t.Helper()
	s.wantRun()
	pinned, err := os.ReadFile(filepath.Join(s.state, "audit.vkey"))
	if err != nil {
		s.t.Fatal(err)
	}
	c := s.command(arm, "audit", "rotate-key")
	out, err := c.CombinedOutput()
	s.wantReached(arm, out)
	if strings.Contains(arm, "=kill") {
		if st, ok := c.ProcessState.Sys().(syscall.WaitStatus); !ok || st.Signal() != syscall.SIGKILL {
			s.t.Errorf("the rotation ended with %v: %s", err, out)
		}
	} else if err == nil || !strings.Contains(string(out), "enclave: ") {
		s.t.Errorf("a rotation that failed ended with %v: %s", err, out)
	}
	s.wantRun()
	first := s.wantVerified(strings.TrimSpace(string(pinned)))
	if out, err := s.command("", "audit", "rotate-key").CombinedOutput(); err != nil {
		s.t.Errorf("rotate again: %v: %s", err, out)
	}
	s.wantRun()
	if again := s.wantVerified(strings.TrimSpace(string(pinned))); again != first+1 {
		s.t.Errorf("%d rotations after %d", again, first)
	}
	return nil
}

// wantVerified checks that the whole log verifies with a key that may have been
// replaced, and is signed by the one key there is. It returns how many rotations
// it has.
func (s *site) wantVerified(pinned string) (rotations int) {
	s.t.Helper()
	log := filepath.Join(s.dir, "log.ndjson")
	if out, err := s.command("", "audit", "export", "--all", "--output", log).CombinedOutput(); err != nil {
		s.t.Fatalf("export: %v: %s", err, out)
	}
	out, err := s.command("", "audit", "verify", log, "--key", pinned, "--json").Output()
	if err != nil {
		s.t.Errorf("verify: %v: %s", err, out)
	}
	var r struct {
		Verified  bool
		Key       string
		Rotations int
	}
	if err := json.Unmarshal(out, &r); err != nil || !r.Verified {
		s.t.Errorf("verify: %v: %s", err, out)
	}
	public, err := os.ReadFile(filepath.Join(s.state, "audit.vkey"))
	if err != nil || strings.TrimSpace(string(public)) != r.Key {
		s.t.Errorf("audit.vkey is %s, %v; the log is signed by %s", public, err, r.Key)
	}
	keys, err := filepath.Glob(filepath.Join(s.state, "db", "audit.key*"))
	if err != nil || len(keys) != 1 {
		s.t.Errorf("the keys are %q, %v", keys, err)
	}
	return r.Rotations
}
