package testenv

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
)

// spy is a testing.TB that keeps how a test would have ended.
type spy struct {
	testing.TB
	verdict string
}

func (s *spy) Helper() {}
func (s *spy) Skipf(format string, args ...any) {
	s.verdict = "skip: " + fmt.Sprintf(format, args...)
	runtime.Goexit()
}
func (s *spy) Fatalf(format string, args ...any) {
	s.verdict = "fail: " + fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func TestNeedSkipsUnlessRequired(t *testing.T) {
	known := map[string]func() error{
		"here":    func() error { return nil },
		"missing": func() error { return errors.New("there is none") },
	}
	for name, tc := range map[string]struct{ need, require, want string }{
		"what is here is not in the way":           {"here", "here", ""},
		"what is missing skips with the reason":    {"missing", "", "skip: needs missing: there is none"},
		"what another requires does not matter":    {"missing", "here", "skip: needs missing: there is none"},
		"what is required fails":                   {"missing", "here, missing", "fail: needs missing, which ENCLAVE_REQUIRE names: there is none"},
		"a need with a typing error fails":         {"mising", "", `fail: "mising" is not a need that a test can have`},
		"a requirement with a typing error fails":  {"here", "mising", `fail: ENCLAVE_REQUIRE names "mising", which is no need that a test can have`},
		"a trailing comma in the list is harmless": {"here", "here,", ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := &spy{}
			done := make(chan struct{})
			go func() {
				defer close(done)
				need(s, tc.need, known, tc.require)
			}()
			<-done
			if s.verdict != tc.want {
				t.Errorf("got %q, want %q", s.verdict, tc.want)
			}
		})
	}
}

func TestReasonsAreOneLine(t *testing.T) {
	for name, probe := range probes() {
		if err := probe(); err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: the reason has more than one line: %q", name, err)
		}
	}
}
