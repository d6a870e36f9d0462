package ui

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/enclave-run/enclave/internal/jsontext"
	"github.com/enclave-run/enclave/internal/terminal"
)

// Visible returns s with everything escaped that a terminal would obey or hide:
// control characters, invalid bytes, and the invisible and direction-changing
// characters of Unicode. What a workload controls is data, also on a screen.
func Visible(s string) string { return terminal.Visible(s) }

// A table writes aligned columns. Every cell is escaped.
type table struct{ w *tabwriter.Writer }

func NewTable(w io.Writer, columns ...string) *table {
	t := &table{tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)}
	t.Row(columns...)
	return t
}

func (t *table) Row(cells ...string) {
	for i, c := range cells {
		if c = Visible(c); c == "" {
			c = "-"
		}
		cells[i] = c
	}
	fmt.Fprintln(t.w, strings.Join(cells, "\t"))
}

func (t *table) Flush() error { return t.w.Flush() }

// PrintJSON writes v as indented JSON on lines of its own. What a terminal would
// obey is escaped wherever it goes, since what reads a pipe shows it on one: the JSON
// means the same.
func PrintJSON(w io.Writer, v any) error { return encodeJSON(w, v, "  ") }

// PrintLine writes v as JSON on one line, as PrintJSON does.
func PrintLine(w io.Writer, v any) error { return encodeJSON(w, v, "") }

func encodeJSON(w io.Writer, v any, indent string) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", indent)
	if err := e.Encode(v); err != nil {
		return err
	}
	_, err := w.Write(jsontext.Inert(b.Bytes()))
	return err
}

// Age returns how long ago t was, in the coarsest unit that says something.
func Age(now, t time.Time) string {
	if t.IsZero() {
		return ""
	}
	d := now.Sub(t)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// Megabytes returns n bytes as a number with a unit, in powers of 1024.
func Megabytes(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
}
