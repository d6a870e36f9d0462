package crash

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const tableFile = "../../../docs/failpoints.md"

var update = flag.Bool("update", false, "write docs/failpoints.md")

// writeTable writes what the tests have seen, if it was asked for.
func writeTable(t *testing.T, c *crashes) {
	if !*update {
		return
	}
	var b strings.Builder
	fmt.Fprintf(&b, `# Failpoints

The %d places between an intent, its effect and its acknowledgement where tests
kill the program (SIGKILL) or have the operation fail, and then check that nothing
that a client was told is lost, that every record verifies, and that nothing of
any sandbox is left. `+"`make crash`"+` writes this page from what it has seen.

After a kill, at each of them: what was acknowledged is there; sessions that were
pending are run, sessions that were running end as killed/backend_lost or with
the limit that was recorded; the log continues every checkpoint that a client saw.

| failpoint | place | kills | errors | what an error there does |
|---|---|---|---|---|
`, len(points))
	for _, name := range slices.Sorted(maps.Keys(points)) {
		fmt.Fprintf(&b, "| `%s` | %s | %d | %d | %s |\n", name, points[name].place, c.kills[name], c.errs[name], c.words[name])
	}
	if err := os.WriteFile(tableFile, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestThePageOfFailpointsHasEachOfThem(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile(tableFile)
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z.]+)` \\| .* \\| ([1-9][0-9]*) \\| ([1-9][0-9]*) \\| [^|]+ \\|$").FindAllStringSubmatch(string(b), -1) {
		listed[m[1]] = true
	}
	for name := range points {
		if !listed[name] {
			t.Errorf("%s is not on the page with a kill and an error: run make crash", name)
		}
	}
	if len(listed) > len(points) {
		t.Errorf("the page has %d failpoints, there are %d: run make crash", len(listed), len(points))
	}
}
