package ui

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/backend"
)

// ShowSession shows a session and its result.
func ShowSession(w io.Writer, s enclave.Session) error {
	t := NewTable(w, "session", s.ID)
	t.Row("phase", string(s.Phase))
	t.Row("outcome", string(s.Outcome))
	t.Row("kill reason", s.KillReason)
	t.Row("language", s.Language)
	t.Row("backend", s.Backend+", isolation "+InWords(s.Isolation, s.Isolation))
	t.Row("egress", strings.TrimSpace(s.Egress.Mode+" "+strings.Join(s.Egress.Allow, " ")))
	l := s.Limits
	t.Row("limits", fmt.Sprintf("pids %d, memory %d MiB, cpu %d/1000 for %ds, wall %ds, disk %d MiB, output %d, egress %d bytes",
		l.PidsLimit, l.MemoryMB, l.CPUMillis, l.CPUSeconds, l.WallSeconds, l.DiskMB, l.OutputBytes, l.EgressBytes))
	t.Row("labels", JoinLabels(s.Labels))
	t.Row("created", s.CreatedAt.Format("2006-01-02 15:04:05 MST"))
	r := s.Result
	if r == nil {
		return t.Flush()
	}
	if r.ExitCode != nil {
		t.Row("exit code", strconv.Itoa(*r.ExitCode))
	}
	t.Row("duration", fmt.Sprintf("%d ms", r.DurationMS))
	t.Row("result", string(r.JSON))
	for _, o := range []struct{ name, text string }{{"stdout", r.Stdout}, {"stderr", r.Stderr}} {
		if o.text != "" {
			for i, line := range strings.Split(strings.TrimSuffix(o.text, "\n"), "\n") {
				t.Row(map[bool]string{true: o.name, false: "\u00b7"}[i == 0], line)
			}
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	var denials []enclave.EventData
	for _, d := range r.Denials {
		denials = append(denials, enclave.EventData{Host: d.Host, Port: d.Port, Protocol: d.Protocol, Reason: d.Reason, Count: d.Count})
	}
	for _, line := range denialLines(denials) {
		if _, err := fmt.Fprintln(w, line); err != nil {
			return err
		}
	}
	return nil
}

// ShowUsage shows what an organisation used and may have.
func ShowUsage(w io.Writer, r enclave.UsageReport) error {
	t := NewTable(w, "DAY", "SESSIONS", "CPU", "WALL", "PEAK MEMORY", "IN", "OUT", "OUTPUT")
	sum := enclave.Usage{Day: "sum"}
	for _, d := range r.Items {
		sum.Sessions += d.Sessions
		sum.CPUSeconds += d.CPUSeconds
		sum.WallSeconds += d.WallSeconds
		sum.PeakMemoryBytes = max(sum.PeakMemoryBytes, d.PeakMemoryBytes)
		sum.BytesIn += d.BytesIn
		sum.BytesOut += d.BytesOut
		sum.OutputBytes += d.OutputBytes
	}
	for _, d := range append(r.Items, sum) {
		t.Row(d.Day, strconv.FormatInt(d.Sessions, 10), fmt.Sprintf("%.1f s", d.CPUSeconds), fmt.Sprintf("%.1f s", d.WallSeconds),
			Megabytes(d.PeakMemoryBytes), Megabytes(d.BytesIn), Megabytes(d.BytesOut), Megabytes(d.OutputBytes))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	t = NewTable(w, "STORED", "RESERVED", "AT MOST", "REQUESTS", "RESULTS", "OUTPUT", "RECORDS")
	s := r.Storage
	most := "no limit"
	if s.LimitBytes > 0 {
		most = Megabytes(s.LimitBytes)
	}
	t.Row(Megabytes(s.UsedBytes), Megabytes(s.ReservedBytes), most, Megabytes(s.Requests), Megabytes(s.Results), Megabytes(s.Output), Megabytes(s.Records))
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	t = NewTable(w, "RUN AT MOST", "A MINUTE", "WAIT AT MOST", "CPU A DAY", "CPU TODAY")
	bound := func(n int64, unit string) string {
		if n == 0 {
			return "no limit"
		}
		return strconv.FormatInt(n, 10) + unit
	}
	q := r.Quotas
	t.Row(bound(int64(q.Concurrent), ""), bound(int64(q.PerMinute), ""), bound(int64(q.Waiting), ""), bound(q.CPUSecondsPerDay, " s"), fmt.Sprintf("%.1f s", q.CPUSecondsToday))
	return t.Flush()
}

// Detail returns the fields of an event in one line, without those that only a
// machine reads.
func Detail(raw json.RawMessage) string {
	var fields map[string]json.RawMessage
	if json.Unmarshal(raw, &fields) != nil {
		return string(raw)
	}
	var parts []string
	for _, k := range SortedKeys(fields) {
		if k == "requestHash" || k == "policyDigest" {
			continue
		}
		v := string(fields[k])
		var s string
		if json.Unmarshal(fields[k], &s) == nil {
			v = s
		}
		if k == "isolation" {
			v = InWords(v, v)
		}
		parts = append(parts, k+"="+v)
	}
	return strings.Join(parts, " ")
}

func JoinLabels(labels map[string]string) string {
	var parts []string
	for _, k := range SortedKeys(labels) {
		parts = append(parts, k+"="+labels[k])
	}
	return strings.Join(parts, " ")
}

// InWords returns an isolation, or what has it, and what must be said of that.
func InWords(what, isolation string) string {
	i, err := backend.ParseIsolation(isolation)
	if err != nil || i.Caveat() == "" {
		return what
	}
	return what + " (" + i.Caveat() + ")"
}
func SortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
