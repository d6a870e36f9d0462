package main

import (
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// silent are the commands without --json, each with the reason.
var silent = map[string]string{
	"enclave serve":               "it serves; its log is structured",
	"enclave demo adversarial":    "writes evidence/adversarial-report.json",
	"enclave demo backend-parity": "writes evidence/backend-parity-report.json",
	"enclave bench":               "writes evidence/bench.json",
	"enclave audit export":        "what it writes is JSON",
	"enclave audit key":           "prints one word",
	"enclave audit rotate-key":    "prints one word",
	"enclave image rm":            "prints nothing",
	"enclave image export":        "writes an archive",
	"enclave key revoke":          "prints nothing",
	"enclave uninstall":           "what it says is for the one who removes",
}

// leaves calls f with each command that does something.
func leaves(c *cobra.Command, f func(*cobra.Command)) {
	for _, sub := range c.Commands() {
		leaves(sub, f)
	}
	if c.Runnable() && !c.HasSubCommands() && !c.Hidden {
		f(c)
	}
}

func TestEveryCommandExplainsItself(t *testing.T) {
	seen := map[string]bool{}
	leaves(newProgram().root(), func(c *cobra.Command) {
		path := c.CommandPath()
		seen[path] = true
		if c.Short == "" || strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: short help %q", path, c.Short)
		}
		if !strings.Contains(c.Example, path) {
			t.Errorf("%s: no example of it in %q", path, c.Example)
		}
		if c.Args == nil && c.Use == c.Name() {
			t.Errorf("%s takes whatever arguments it is given", path)
		}
		if reason := silent[path]; (c.Flags().Lookup("json") == nil) != (reason != "") {
			t.Errorf("%s: --json is %v, the reason for none %q", path, c.Flags().Lookup("json") != nil, reason)
		}
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" {
				t.Errorf("%s: --%s says nothing of itself", path, f.Name)
			}
		})
	})
	if len(seen) < 15 {
		t.Errorf("only %d commands were found: the walk is broken", len(seen))
	}
	for path := range silent {
		if !seen[path] {
			t.Errorf("%s is excused, and does not exist", path)
		}
	}
}

// Every option of the control plane can come from its environment, which is all
// that the one behind `enclave run` has.
func TestEveryFlagOfServeHasAVariable(t *testing.T) {
	root := newProgram().root()
	serve, _, err := root.Find([]string{"serve"})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	serve.LocalFlags().VisitAll(func(f *pflag.Flag) {
		if n++; !f.Hidden && f.Name != "help" && !strings.Contains(f.Usage, "ENCLAVE_") && !strings.Contains(f.Usage, "OTEL_") {
			t.Errorf("--%s: %q names no variable", f.Name, f.Usage)
		}
	})
	if n < 2 {
		t.Errorf("serve has %d flags: the walk is broken", n)
	}
}
