package arch

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// SECURITY.md says which test defends each boundary. A test that is renamed or
// removed would leave it saying so.
func TestTheTestsThatSecurityNamesExist(t *testing.T) {
	page, err := os.ReadFile("../../SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	// A folder in backquotes, a colon, and names.
	cited := regexp.MustCompile("`((?:internal|cmd)/[a-z/-]+)`: ((?:Test[A-Za-z0-9]+(?:, )?)+)").FindAllStringSubmatch(string(page), -1)
	if len(cited) < 20 {
		t.Fatalf("only %d folders with tests were found in SECURITY.md", len(cited))
	}
	for _, c := range cited {
		files, err := filepath.Glob(filepath.Join("../..", c[1], "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		var all strings.Builder
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			all.Write(b)
		}
		for name := range strings.SplitSeq(strings.TrimSuffix(c[2], ", "), ", ") {
			if !strings.Contains(all.String(), "\nfunc "+name+"(") {
				t.Errorf("SECURITY.md names %s in %s, which is not there", name, c[1])
			}
		}
	}
}

func TestLinksBetweenPagesLeadSomewhere(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#:]+)(?:#[^)]*)?\)`) // with a colon it is not ours
	links := 0
	for _, pattern := range []string{"*.md", "*/*.md", "docs/*/*.md"} {
		pages, err := filepath.Glob(filepath.Join("../..", pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, page := range pages {
			b, err := os.ReadFile(page)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range link.FindAllStringSubmatch(string(b), -1) {
				links++
				if _, err := os.Stat(filepath.Join(filepath.Dir(page), m[1])); err != nil {
					t.Errorf("%s: %v", page, err)
				}
			}
		}
	}
	if links < 10 {
		t.Errorf("only %d links were found", links)
	}
}
