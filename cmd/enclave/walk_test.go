package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/enclave-run/enclave/internal/testenv"
)

// A step is a command of the walk in the README, and what it is said to print.
type step struct {
	command, shown string
}

// walk returns the steps of the README's walk through the API.
func walk(t *testing.T) []step {
	t.Helper()
	b, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(b), "\n## A walk through the API with curl\n")
	if !ok {
		t.Fatal("the README has no walk")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	var steps []step
	for _, block := range regexp.MustCompile("(?s)```console\n(.*?)```").FindAllStringSubmatch(section, -1) {
		for line := range strings.Lines(block[1]) {
			if command, ok := strings.CutPrefix(line, "$ "); ok {
				steps = append(steps, step{command: command})
			} else if len(steps) == 0 {
				t.Fatalf("%q is shown before any command", line)
			} else {
				steps[len(steps)-1].shown += line
			}
		}
	}
	if fences := strings.Count(section, "```"); len(steps) < 10 || fences != 2*strings.Count(section, "```console") {
		t.Fatalf("%d steps: not all of the walk was found", len(steps))
	}
	return steps
}

// pattern returns what matches the text that is shown: "…" is anything within a
// line, and alone on a line any lines.
func pattern(shown string) *regexp.Regexp {
	p := regexp.QuoteMeta(strings.TrimSuffix(shown, "\n"))
	p = regexp.MustCompile(`(?m)^…\n`).ReplaceAllString(p, `(?s:.*)`)
	return regexp.MustCompile(`\A` + strings.ReplaceAll(p, "…", `[^\n]*`) + `\n*\z`)
}

// take takes the walk against a server, in one shell, as a reader would.
func take(t *testing.T, v *served) {
	t.Helper()
	const mark = "\x1e"
	steps := walk(t)
	var script strings.Builder
	for i, s := range steps {
		fmt.Fprintf(&script, "printf '%s%d\\n'\n%s", mark, i, s.command)
	}
	c := exec.Command("bash", "-u")
	c.Stdin = strings.NewReader(script.String())
	c.Env = append(os.Environ(), "ENCLAVE_BASE_URL="+v.url, "ENCLAVE_API_KEY="+v.key)
	out, err := c.CombinedOutput()
	if err != nil {
		t.Errorf("the walk ends with %v", err)
	}
	printed := map[int]string{}
	for part := range strings.SplitSeq(string(out), mark) {
		number, text, _ := strings.Cut(part, "\n")
		if n, err := strconv.Atoi(number); err == nil {
			printed[n] = text
		}
	}
	for i, s := range steps {
		got, ran := printed[i]
		if !ran || !pattern(s.shown).MatchString(got) {
			t.Errorf("$ %sprints\n%s\nand not\n%s", s.command, got, s.shown)
		}
	}
}

func TestWalkInTheReadmeIsTrue(t *testing.T) {
	t.Parallel()
	env, _ := simulated(t)
	v := startServe(t, env)
	take(t, v)
	v.stop(t)
}

func TestWalkInTheReadmeIsTrueInGVisor(t *testing.T) {
	t.Parallel()
	testenv.Need(t, "gvisor")
	bin, images := filepath.Dir(testenv.Binaries(t).Guest), testenv.ImageDir(t)
	dir, err := os.MkdirTemp("", "walk")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	st, err := gvisorState(dir, images)
	if err != nil {
		t.Fatal(err)
	}
	v := startServe(t, []string{"ENCLAVE_STATE=" + st, "ENCLAVE_BACKEND=gvisor", "ENCLAVE_BASE_URL=", "ENCLAVE_TEST_BIN=" + bin})
	take(t, v)
	v.stop(t)
}

// What differs from what is shown is noticed, however little.
func TestPatternsOfTheWalkAreStrict(t *testing.T) {
	for _, tc := range []struct {
		shown, got string
		match      bool
	}{
		{"{\"a\":…}\n", "{\"a\":1}\n", true},
		{"{\"a\":…}\n", "{\"a\":1}", true},
		{"{\"a\":…}\n", "{\"b\":1}\n", false},
		{"{\"a\":…}\n", "{\"a\":\n1}\n", false},
		{"x\n…\ny\n", "x\n1\n2\ny\n", true},
		{"x\n…\ny\n", "x\ny\n", true},
		{"x\n…\ny\n", "x\n1\n", false},
		{"x\n", "x\nmore\n", false},
		{"a.c\n", "abc\n", false},
		{"", "", true},
		{"", "an error\n", false},
	} {
		if got := pattern(tc.shown).MatchString(tc.got); got != tc.match {
			t.Errorf("%q for %q: %v", tc.got, tc.shown, got)
		}
	}
}
