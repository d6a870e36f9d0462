package arch

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/mod/modfile"
)

// Every direct dependency stands in deps.txt with a reason, and nothing else
// does.
func TestDependenciesHaveReasons(t *testing.T) {
	root := filepath.Join("..", "..")
	raw, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	mod, err := modfile.Parse("go.mod", raw, nil)
	if err != nil {
		t.Fatal(err)
	}
	list, err := os.ReadFile(filepath.Join(root, "deps.txt"))
	if err != nil {
		t.Fatal(err)
	}
	for _, problem := range reasons(mod, string(list)) {
		t.Error(problem)
	}
}

func TestADependencyWithoutAReasonIsNoticed(t *testing.T) {
	mod, err := modfile.Parse("go.mod", []byte("module m\nrequire (\n\texample.com/a v1.0.0\n\texample.com/b v1.0.0\n\texample.com/c v1.0.0 // indirect\n)\n"), nil)
	if err != nil {
		t.Fatal(err)
	}
	for list, want := range map[string]int{
		"example.com/a  why\nexample.com/b  why\n":                     0,
		"example.com/a  why\n":                                         1, // b is missing
		"example.com/a  why\nexample.com/b\n":                          1, // b has no reason
		"example.com/a  why\nexample.com/b  why\nexample.com/c  why\n": 1, // c is not direct
		"# a comment\n\nexample.com/b  why\nexample.com/a  why\n":      1, // not in order
		"example.com/a  why\nexample.com/a  why\nexample.com/b  why\n": 1, // twice
	} {
		if got := reasons(mod, list); len(got) != want {
			t.Errorf("%q: %q, want %d problems", list, got, want)
		}
	}
}

// reasons returns what is wrong with the list of mod's direct dependencies.
func reasons(mod *modfile.File, list string) []string {
	var problems, direct, listed []string
	for _, r := range mod.Require {
		if !r.Indirect {
			direct = append(direct, r.Mod.Path)
		}
	}
	for line := range strings.Lines(list) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		path, reason, _ := strings.Cut(line, " ")
		if strings.TrimSpace(reason) == "" {
			problems = append(problems, path+" has no reason in deps.txt")
		}
		if slices.Contains(listed, path) {
			problems = append(problems, path+" stands in deps.txt twice")
			continue
		}
		listed = append(listed, path)
		if !slices.Contains(direct, path) {
			problems = append(problems, path+" stands in deps.txt and is no direct dependency")
		}
	}
	for _, path := range direct {
		if !slices.Contains(listed, path) {
			problems = append(problems, path+" is a direct dependency without a line in deps.txt")
		}
	}
	if !slices.IsSorted(listed) {
		problems = append(problems, "deps.txt is not sorted")
	}
	return problems
}
