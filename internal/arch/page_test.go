package arch

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
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

// ARCHITECTURE.md shows people the table of imports: each row of it is the
// table's, and no package that the program is made of is missing.
func TestArchitectureShowsTheTableOfImports(t *testing.T) {
	page, err := os.ReadFile("../../ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), "## Where each rule lives")
	section, _, _ = strings.Cut(section, "\n## ")
	shown := map[string][]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)`[^|]* \\|.*\\| ([^|]+) \\|$").FindAllStringSubmatch(section, -1) {
		names, _, _ := strings.Cut(m[2], ";") // what follows says more of it
		pkg := strings.Replace(m[1], "…", "internal/backend", 1)
		may := []string{}
		switch names {
		case "nothing":
		case "everything":
			may = []string{"*"}
		default:
			for name := range strings.SplitSeq(names, ", ") {
				may = append(may, fullName(name))
			}
		}
		slices.Sort(may)
		shown[pkg] = may
	}
	if len(shown) < 30 {
		t.Fatalf("only %d rows were found in ARCHITECTURE.md", len(shown))
	}
	for pkg, may := range shown {
		law, known := row(pkg)
		law = slices.Clone(law)
		slices.Sort(law)
		// All of the corpus is tests, which import what they like.
		if !known || !slices.Equal(may, law) && pkg != "internal/corpus" {
			t.Errorf("ARCHITECTURE.md lets %s import %q, the table %q", pkg, may, law)
		}
	}
	for pkg := range table {
		if _, ok := shown[pkg]; !ok && strings.HasPrefix(pkg, "internal/") && !strings.HasSuffix(pkg, "*") && !slices.Contains(testOnly, pkg) && pkg != "internal/arch" {
			t.Errorf("ARCHITECTURE.md has no row of %s", pkg)
		}
	}
}

// fullName is the folder that a row of ARCHITECTURE.md calls by its last part.
func fullName(name string) string {
	if name == "enclave" {
		return "."
	}
	for pkg := range table {
		if pkg == name || strings.HasSuffix(pkg, "/"+name) {
			return pkg
		}
	}
	return name
}

// The walks name functions by file; each must be there.
func TestTheWalksOfArchitectureNameWhatIsThere(t *testing.T) {
	page, err := os.ReadFile("../../ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	steps := regexp.MustCompile("(?m)^\\| `([a-z/]+_?[a-z]*\\.go)` `([A-Za-z]+)` \\|").FindAllStringSubmatch(string(page), -1)
	if len(steps) < 20 {
		t.Fatalf("only %d steps were found", len(steps))
	}
	for _, s := range steps {
		b, err := os.ReadFile(filepath.Join("..", s[1]))
		if err != nil {
			t.Error(err)
			continue
		}
		if !regexp.MustCompile(`(?m)^func (\([^)]*\) )?` + s[2] + `\(`).Match(b) {
			t.Errorf("%s has no function %s", s[1], s[2])
		}
	}
}
