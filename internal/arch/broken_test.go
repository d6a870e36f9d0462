package arch

import (
	"strings"
	"testing"
	"testing/fstest"
)

// TestBrokenTreesAreNoticed tests the test: each tree breaks one rule, and the
// one problem that is found must be that one.
func TestBrokenTreesAreNoticed(t *testing.T) {
	const audit = `package gvisor; import _ "github.com/enclave-run/enclave/internal/audit"`
	for name, tc := range map[string]struct {
		file, src string
		want      string // "" is no problem
	}{
		"a backend must not write audit events": {"internal/backend/gvisor/x.go", audit, "does not let internal/backend/gvisor"},
		"its tests may":                         {"internal/backend/gvisor/x_test.go", audit, ""},
		"control must not see secrets":          {"internal/control/x.go", `package control; import _ "github.com/enclave-run/enclave/internal/secret"`, "does not let internal/control"},
		"httpapi must not reach the store":      {"internal/httpapi/x.go", `package httpapi; import _ "github.com/enclave-run/enclave/internal/store"`, "does not let internal/httpapi"},
		"control may use the waist":             {"internal/control/x.go", `package control; import _ "github.com/enclave-run/enclave/internal/backend"`, ""},
		"control may not name a backend":        {"internal/control/x.go", `package control; import _ "github.com/enclave-run/enclave/internal/backend/gvisor"`, "does not let internal/control"},
		"the program wires everything":          {"cmd/enclave/x.go", `package main; import _ "github.com/enclave-run/enclave/internal/secret"`, ""},
		"a guest is accepted by hand":           {"internal/control/x_test.go", "package control\nfunc f() { wire.Accept(nil, nil) }", "accepts a guest by hand"},
		"the program is not a test":             {"cmd/enclave/x.go", `package main; import _ "github.com/enclave-run/enclave/internal/testenv"`, "for tests only"},
		"the guest knows only wire":             {"cmd/enclave-guest/x.go", `package main; import _ "github.com/enclave-run/enclave/internal/backend"`, "does not let cmd/enclave-guest"},
		"storetest is for tests":                {"internal/store/x.go", `package store; import _ "github.com/enclave-run/enclave/internal/store/storetest"`, "for tests only"},
		"a root package with a dependency":      {"x.go", `package enclave; import _ "golang.org/x/sys/unix"`, "standard library alone"},
		"a root package that reaches inside":    {"x.go", `package enclave; import _ "github.com/enclave-run/enclave/internal/auth"`, "does not let ."},
		"the SDK of httpapi is the root":        {"internal/httpapi/x.go", `package httpapi; import _ "github.com/enclave-run/enclave"`, ""},
		"failpoints are everywhere":             {"internal/wire/x.go", `package wire; import _ "github.com/enclave-run/enclave/internal/failpoint"`, ""},
		"but in the root package":               {"x.go", `package enclave; import _ "github.com/enclave-run/enclave/internal/failpoint"`, "does not let ."},
		"a package without a row":               {"internal/surprise/x.go", `package surprise`, "no row"},
		"a package named util":                  {"internal/image/x.go", `package util`, "says nothing"},
		"a test package named types":            {"internal/image/x_test.go", `package types_test`, "says nothing"},
		"a long file":                           {"internal/image/x.go", "package image\n" + strings.Repeat("\n", 500), "has 501 lines"},
		"a long test":                           {"internal/image/x_test.go", "package image\n" + strings.Repeat("\n", 500), "has 501 lines"},
		"a file of 500 lines":                   {"internal/image/x.go", "package image\n" + strings.Repeat("\n", 499), ""},
		"a waist that has grown":                {"internal/backend/backend.go", "package backend\n" + strings.Repeat("\n", 150), "the waist has grown"},
		"what does not parse":                   {"internal/image/x.go", "packet image", "expected 'package'"},
		"testdata is not ours":                  {"internal/image/testdata/x.go", "packet image", ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, problems := check(fstest.MapFS{tc.file: {Data: []byte(tc.src)}})
			switch {
			case tc.want == "" && len(problems) > 0:
				t.Errorf("found %q in a good tree", problems)
			case tc.want != "" && (len(problems) != 1 || !strings.Contains(problems[0], tc.want)):
				t.Errorf("found %q, want one problem with %q", problems, tc.want)
			}
		})
	}
}

func TestWhatTheTableNeedNotHaveIsNoticed(t *testing.T) {
	have := map[string]map[string]bool{}
	for name, may := range table {
		pkg := strings.Replace(name, "*", "any", 1)
		have[pkg] = map[string]bool{}
		for _, to := range may {
			have[pkg][to] = true
		}
	}
	if got := unused(have); len(got) != 0 {
		t.Errorf("of a tree that uses all: %q", got)
	}
	delete(have["internal/control"], "internal/wire")
	delete(have, "internal/seccomp")
	got := unused(have)
	if len(got) != 2 || !strings.Contains(got[0], "row internal/seccomp,") || !strings.Contains(got[1], "lets internal/control import internal/wire,") {
		t.Errorf("of a tree that lacks a package and an import: %q", got)
	}
}
