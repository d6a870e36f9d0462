package doctor

import (
	"fmt"
	"io"
	"strings"

	"github.com/enclave-run/enclave/internal/terminal"
	"github.com/enclave-run/enclave/internal/ui"
)

// Shown shows findings as they come, and sums them up.
type Shown struct {
	Out, Err io.Writer
	Color    bool // Out takes styles
	// JSON is whether Out gets one report at the end, and Err the sections meanwhile.
	JSON bool

	section string
	all     []Finding
}

// marks are the words for a Status, and their colors.
var marks = map[Status]struct {
	word  string
	style terminal.Style
}{
	Passed: {"yes", terminal.Green}, Failed: {"NO", terminal.BoldRed},
	Warned: {"but", terminal.Yellow}, NotRun: {"-", terminal.Dim},
}

// Tell shows a finding.
func (f *Shown) Tell(n Finding) error {
	f.all = append(f.all, n)
	w := f.Out
	if f.JSON {
		w = f.Err // the report comes at the end
	}
	if n.Section != f.section {
		f.section = n.Section
		if _, err := fmt.Fprintf(w, "%s\n", n.Section); err != nil || f.JSON {
			return err
		}
	} else if f.JSON {
		return nil
	}
	mark := fmt.Sprintf("%-4s", marks[n.Status].word)
	if f.Color {
		mark = terminal.Paint(marks[n.Status].style, mark)
	}
	text := ui.Visible(n.Doc)
	switch n.Status {
	case Passed:
		if n.Detail != "" {
			text += " (" + ui.Visible(n.Detail) + ")"
		}
	case NotRun:
		text += "\n       not looked at: " + ui.Visible(n.Detail)
	default:
		for i, l := range strings.Split(n.Detail, "\n") {
			label := "seen: "
			if i > 0 {
				label = "      "
			}
			text += "\n       " + label + ui.Visible(l)
		}
	}
	if n.Do != "" {
		text += "\n       do:   " + ui.Visible(n.Do)
	}
	_, err := fmt.Fprintf(w, "  %s %s\n", mark, text)
	return err
}

// End sums up, and reports whether a check failed.
func (f *Shown) End() (failed bool, err error) {
	count := map[Status]int{}
	for _, n := range f.all {
		count[n.Status]++
	}
	if f.JSON {
		report := struct {
			Summary map[string]int `json:"summary"`
			Checks  []Finding      `json:"checks"`
		}{map[string]int{
			"passed": count[Passed], "failed": count[Failed], "warnings": count[Warned], "notRun": count[NotRun],
		}, f.all}
		if err := ui.PrintJSON(f.Out, report); err != nil {
			return false, err
		}
	} else if _, err := fmt.Fprintf(f.Out, "\n%d hold, %d do not, %d could be better, %d were not looked at\n",
		count[Passed], count[Failed], count[Warned], count[NotRun]); err != nil {
		return false, err
	}
	return count[Failed] > 0, nil
}
