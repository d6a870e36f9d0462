package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/enclave-run/enclave/internal/audit"
)

// verifyLog measures how long an exported log of a million events takes to
// check, in a file, with as many sessions at once as a busy host has.
func verifyLog(ctx context.Context, c Config) (_ []Result, err error) {
	f, err := os.CreateTemp(c.Temp, "enclave-bench-log-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	out := bufio.NewWriterSize(f, 1<<20)
	key, err := writeLog(ctx, out)
	if err = errors.Join(err, out.Flush()); err != nil {
		return nil, fmt.Errorf("write a log: %w", err)
	}
	best := time.Duration(0)
	for range 3 {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return nil, err
		}
		begun := time.Now()
		if _, err := audit.VerifyLog(f, key, audit.LogOptions{}); err != nil {
			return nil, err
		}
		if took := time.Since(begun); best == 0 || took < best {
			best = took
		}
	}
	return []Result{alone("verify_log_1m_events", float64(best.Microseconds())/1000, "ms", "best of 3")}, nil
}

// writeLog writes a log of a million events in sessions of eight to w, and
// returns the key that it is signed with.
func writeLog(ctx context.Context, w io.Writer) (key string, err error) {
	const events, live = 1_000_000, 125
	private, public, err := audit.GenerateKey(nil, "log.example/bench")
	if err != nil {
		return "", err
	}
	signer, err := audit.NewSigner(private)
	if err != nil {
		return "", err
	}
	seconds, bytes, code := 0.034511, int64(12345), 0
	life := []audit.Event{
		{Type: audit.SessionCreated, Data: audit.Data{Caller: "local", Language: "python"}},
		{Type: audit.SandboxStarted, Data: audit.Data{Backend: "gvisor", Isolation: "userspace_kernel"}},
		{Type: audit.EgressDenied, Data: audit.Data{Host: "evil.example.com", Protocol: "dns", Reason: "not_allowed", Count: 1}},
		{Type: audit.EgressAllowed, Data: audit.Data{Host: "api.example.com", Port: 443, Protocol: "tcp", Reason: "allowed", Rule: "api.example.com", Count: 1}},
		{Type: audit.ResultCollected, Data: audit.Data{ResultBytes: &bytes, OutputBytes: &bytes}},
		{Type: audit.WorkloadExited, Data: audit.Data{Outcome: "succeeded", ExitCode: &code}},
		{Type: audit.UsageMetered, Data: audit.Data{CPUSeconds: &seconds, WallSeconds: &seconds, PeakMemoryBytes: &bytes, BytesIn: &bytes, BytesOut: &bytes}},
		{Type: audit.SessionTornDown, Data: audit.Data{Caller: "local"}},
	}
	var hashes []tlog.Hash
	read := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(indexes))
		for i, at := range indexes {
			out[i] = hashes[at]
		}
		return out, nil
	})
	n := int64(0)
	for first := 0; n < events; first += live {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		var last [live]audit.Event
		for _, e := range life {
			for i := range last {
				e.Session, e.Time = fmt.Sprintf("s-0a1b2c-%d", first+i+1), time.Unix(1_790_000_000, n*1000)
				last[i] = audit.Seal(last[i], e)
				leaf, err := audit.Leaf(last[i])
				if err != nil {
					return "", err
				}
				made, err := tlog.StoredHashesForRecordHash(n, leaf, read)
				if err != nil {
					return "", err
				}
				hashes = append(hashes, made...)
				line, err := audit.LogLine(last[i])
				if err != nil {
					return "", err
				}
				if _, err := w.Write(line); err != nil {
					return "", err
				}
				n++
			}
		}
	}
	root, err := tlog.TreeHash(n, read)
	if err != nil {
		return "", err
	}
	note, err := signer.Checkpoint(tlog.Tree{N: n, Hash: root})
	if err != nil {
		return "", err
	}
	end, err := audit.LogEnd(note)
	if err != nil {
		return "", err
	}
	_, err = w.Write(end)
	return public, err
}
