//go:build linux

package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/enclave-run/enclave/internal/wire"
)

// kernels are what the guest is tested on: a sandbox's promises are the same on
// each.
func kernels() map[string]func(testing.TB) *sandbox {
	return map[string]func(testing.TB) *sandbox{
		"namespaces": func(t testing.TB) *sandbox { return newSandbox(t) },
		"gvisor":     newGVisor,
	}
}

// onEach runs test in a new sandbox on each kernel.
func onEach(t *testing.T, test func(t *testing.T, s *sandbox)) {
	for name, start := range kernels() {
		t.Run(name, func(t *testing.T) { test(t, start(t)) })
	}
}

func TestLanguagesRun(t *testing.T) {
	onEach(t, languagesRun)
}

func languagesRun(t *testing.T, s *sandbox) {
	t.Logf("hello: %+v", s.hello)
	for name, c := range map[string]struct {
		request wire.StartRequest
		want    outcome
	}{
		"python": {wire.StartRequest{Language: "python", Code: "print('hi'); enclave.result({'answer': 285})"},
			outcome{Stdout: "hi\n", Result: `{"answer":285}`}},
		"node": {wire.StartRequest{Language: "node", Code: "console.log('hi'); enclave.result({answer: 285}); process.exit(3)"},
			outcome{Stdout: "hi\n", Result: `{"answer":285}`, Code: 3}},
		"bash": {wire.StartRequest{Language: "bash", Code: "echo hi; enclave-result '{\"answer\":285}'; exit 4"},
			outcome{Stdout: "hi\n", Result: `{"answer":285}`, Code: 4}},
		"argv": {wire.StartRequest{Argv: []string{"echo", "hi"}}, outcome{Stdout: "hi\n"}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, s.run(t, c.request)); diff != "" {
				t.Error(diff)
			}
		})
	}
}
