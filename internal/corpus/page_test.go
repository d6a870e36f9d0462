package corpus

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

const (
	page        = "../../docs/corpus.md"
	firstOfPage = "<!-- kills -->\n"
	lastOfPage  = "<!-- end of kills -->"
)

// killTable is the table of the switches for the page.
func killTable() string {
	var b strings.Builder
	b.WriteString("| control | off on | cases that turn red |\n|---|---|---|\n")
	for _, k := range kills {
		fmt.Fprintf(&b, "| %s | %s | %s |\n", k.control, k.kernel, strings.Join(k.cases, " "))
	}
	return b.String()
}

// TestThePageHasEachSwitch holds docs/corpus.md to the switches that there are;
// with ENCLAVE_CORPUS=page it writes them.
func TestThePageHasEachSwitch(t *testing.T) {
	b, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(b), firstOfPage)
	_, after, ok2 := strings.Cut(rest, lastOfPage)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the switches", page)
	}
	want := before + firstOfPage + killTable() + lastOfPage + after
	if os.Getenv("ENCLAVE_CORPUS") == "page" {
		if err := os.WriteFile(page, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if want != string(b) {
		t.Errorf("%s does not have the switches that there are: ENCLAVE_CORPUS=page go test ./internal/corpus -run %s", page, t.Name())
	}
}
