package ui

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/enclave-run/enclave"
)

// A RunView shows a session while it runs.
type RunView struct {
	Out, Err io.Writer
	Raw      bool // a terminal gets output as it is
	Live     bool // output is passed on as it comes
	open     bool // the last byte on stdout ended no line
	denials  []enclave.EventData
}

func (v *RunView) Event(e enclave.StreamEvent) error {
	switch e.Kind {
	case enclave.StreamStdout:
		if !v.Live || len(e.Output) == 0 {
			return nil
		}
		v.open = e.Output[len(e.Output)-1] != '\n'
		if _, err := unfiltered(v.Out, v.Raw).Write(e.Output); err != nil {
			return fmt.Errorf("write the output: %w", err)
		}
	case enclave.StreamStderr:
		if v.Live {
			_, _ = unfiltered(v.Err, v.Raw).Write(e.Output) // who closed our stderr wants none of it
		}
	case enclave.StreamAudit:
		if e.Audit != nil && e.Audit.Type == "egress_denied" {
			if d, err := e.Audit.Detail(); err == nil {
				v.denials = append(v.denials, d)
			}
		}
	}
	return nil
}

// End prints the result, and what was denied.
func (v *RunView) End(s enclave.Session, quiet bool) error {
	if r := s.Result; r != nil {
		if len(r.JSON) > 0 && string(r.JSON) != "null" {
			if v.open {
				fmt.Fprintln(v.Out)
			}
			if err := PrintLine(v.Out, r.JSON); err != nil {
				return fmt.Errorf("write the result: %w", err)
			}
		}
		if r.Truncated && !quiet {
			fmt.Fprintln(v.Err, "output truncated: raise --output")
		}
	}
	if !quiet {
		for _, line := range denialLines(v.denials) {
			fmt.Fprintln(v.Err, line)
		}
	}
	return nil
}

// denialLines returns one line for each distinct denial, in the order of the
// record, with what would permit it.
func denialLines(denials []enclave.EventData) []string {
	type key struct {
		host, protocol, reason string
		port                   uint16
	}
	count := map[key]uint64{}
	var order []key
	for _, d := range denials {
		k := key{d.Host, d.Protocol, d.Reason, d.Port}
		if count[k] == 0 {
			order = append(order, k)
		}
		count[k] += max(d.Count, 1)
	}
	var lines []string
	for _, k := range order {
		where := k.host
		if k.port != 0 {
			where = joinPort(k.host, k.port)
		}
		line := fmt.Sprintf("denied: %s (%s): %s", Visible(where), Visible(k.protocol), Visible(k.reason))
		if n := count[k]; n > 1 {
			line += fmt.Sprintf(", %d times", n)
		}
		if k.reason == "not_allowed" && (k.protocol == "tcp" || k.protocol == "dns") {
			rule := k.host
			if k.port != 0 && k.port != 80 && k.port != 443 {
				rule = where
			}
			line += "; to permit it: --allow " + Visible(rule)
		}
		lines = append(lines, line)
	}
	return lines
}

func joinPort(host string, port uint16) string {
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return fmt.Sprintf("%s:%d", host, port)
}

// LogLine prints a piece of output as a line of JSON, and nothing for an event that
// has none.
func LogLine(w io.Writer, e enclave.StreamEvent) error {
	line := struct {
		Stream string `json:"stream"`
		Text   string `json:"text,omitempty"`
		Base64 []byte `json:"base64,omitempty"`
	}{Stream: e.Kind}
	switch {
	case len(e.Output) == 0:
		return nil
	case utf8.Valid(e.Output):
		line.Text = string(e.Output)
	default:
		line.Base64 = e.Output
	}
	return PrintLine(w, line)
}
