package ui

import (
	"fmt"
	"io"
	"time"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/parity"
	"github.com/enclave-run/enclave/internal/verify"
)

// ShowVerified shows what holds of a record, or of something else that has
// properties.
func ShowVerified(w io.Writer, properties []verify.Property, r audit.Report) error {
	for _, q := range properties {
		word := "yes"
		if !q.Holds {
			word = "NO "
		}
		line := word + "  " + q.Name
		if q.Detail != "" {
			line += ": " + Visible(q.Detail)
		}
		if _, err := fmt.Fprintln(w, line); err != nil {
			return err
		}
	}
	if r.Session == "" {
		return nil
	}
	_, err := fmt.Fprintf(w, "session %s, %d events, outcome %s, in log %s of %d events\n",
		Visible(r.Session), r.Events, Visible(orDash(r.Outcome)), Visible(r.Origin), r.Log.N)
	return err
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// ShowCertificate shows a certificate that was checked, and what holds of it.
func ShowCertificate(w io.Writer, c parity.Certificate, properties []verify.Property, asJSON bool) error {
	notRun := []string{}
	for _, w := range c.Workloads {
		if w.NotRun != "" {
			notRun = append(notRun, w.Name)
		}
	}
	if asJSON {
		if err := PrintJSON(w, map[string]any{
			"verified": verify.Holds(properties), "properties": properties, "time": c.Time, "enclave": c.Enclave, "mode": c.Mode, "host": c.Host,
			"backends": c.Backends, "workloads": len(c.Workloads), "notRun": notRun, "exceptions": c.Exceptions,
		}); err != nil {
			return err
		}
	} else if err := ShowVerified(w, properties, audit.Report{}); err != nil {
		return err
	} else if properties[0].Holds {
		for _, b := range c.Backends {
			if _, err := fmt.Fprintf(w, "backend %s: %s, %s, image %s, log %s\n", Visible(b.Label), Visible(b.Kind), Visible(InWords(b.Isolation, b.Isolation)), Visible(b.Image), Visible(b.LogKey)); err != nil {
				return err
			}
		}
		if _, err := fmt.Fprintf(w, "%s: %d workloads on %d backends, %d not run, %d exceptions, mode %s, Enclave %s, Linux %s on %s\n",
			c.Time.Format("2006-01-02 15:04:05 UTC"), len(c.Workloads)-len(notRun), len(c.Backends), len(notRun), len(c.Exceptions), Visible(c.Mode), Visible(c.Enclave), Visible(c.Host.Kernel), Visible(c.Host.Arch)); err != nil {
			return err
		}
	}
	return nil
}

// ShowLog shows what holds of a whole log that was checked, or why it does not verify:
// then only JSON says so.
func ShowLog(w io.Writer, r audit.LogReport, why error, asJSON bool) error {
	if asJSON {
		return PrintJSON(w, map[string]any{"verified": why == nil, "reason": verify.Reason(why), "log": r.Origin, "logSize": r.Log.N, "key": r.Key,
			"sessions": r.Sessions, "open": r.Open, "rotations": r.Rotations, "checkpoints": r.Checkpoints})
	}
	if why != nil {
		return nil
	}
	_, err := fmt.Fprintf(w, "yes  log %s: %d events of %d sessions, %d of them not ended, %d rotations of the key, %d published checkpoints found\n",
		Visible(r.Origin), r.Log.N, r.Sessions, r.Open, r.Rotations, r.Checkpoints)
	return err
}

// ShowSeen shows what a witness has seen to be all right.
func ShowSeen(w io.Writer, now time.Time, s verify.Seen, asJSON bool) error {
	tree, err := audit.ParseCheckpoint([]byte(s.Checkpoint))
	if err != nil {
		return err
	}
	if asJSON {
		return PrintLine(w, map[string]any{"size": tree.N, "root": tree.Hash.String(), "key": s.Key, "consistent": true})
	}
	_, err = fmt.Fprintf(w, "%s the log only grew: %d events, root %s\n", now.UTC().Format(time.RFC3339), tree.N, tree.Hash)
	return err
}
