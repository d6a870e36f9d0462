// Package verify is what anybody checks who trusts no server: a record, a certificate
// of parity, and that a log only grew. It needs a public key and nothing else.
package verify

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/statedir"
)

// A Property is one sentence that a verified record makes true.
type Property struct {
	Name   string `json:"name"`
	Holds  bool   `json:"holds"`
	Detail string `json:"detail,omitempty"`
}

// Holds reports whether every property does.
func Holds(properties []Property) bool {
	for _, p := range properties {
		if !p.Holds {
			return false
		}
	}
	return true
}

// Record checks every property by itself, so that a reader sees which one
// does not hold, and then all of them together, which is what counts.
func Record(r io.Reader, vkey string) ([]Property, audit.Report) {
	b, err := audit.ReadBundle(r)
	read := Property{"the file is a record in its one canonical form", err == nil, Reason(err)}
	if err != nil {
		return []Property{read}, audit.Report{}
	}
	_, cerr := audit.Trace(vkey, []byte(b.Checkpoint), b.Rotations)
	chain := audit.Verify(b.Events)
	order := audit.CheckOrder(b.Events)
	report, whole := audit.VerifyBundle(b, vkey)
	complete, why := false, "not checked: the record does not verify"
	if whole == nil {
		complete, why = report.Complete, report.Why
	}
	return []Property{
		read,
		{"the checkpoint is signed by the key, or one that followed it", cerr == nil, Reason(cerr)},
		{"each event follows from the one before it", chain == nil, Reason(chain)},
		{"the events are in their order", order == nil, Reason(order)},
		{"each event is in the signed log, and nothing contradicts it", whole == nil, Reason(whole)},
		{"the record is complete", complete, why},
	}, report
}

func Reason(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// OpenLog reports whether f is an exported log, and not a record; rest reads f
// from its beginning either way.
func OpenLog(f io.Reader) (isLog bool, rest io.Reader) {
	const long = len(`{"checkpoint":`)
	head := make([]byte, long)
	n, _ := io.ReadFull(f, head) // an error comes again from f
	head = head[:n]
	isLog = bytes.HasPrefix(head, []byte(`{"session":`)) || bytes.HasPrefix(head, []byte(`{"checkpoint":`))
	return isLog, io.MultiReader(bytes.NewReader(head), f)
}

// ReadKey returns a public key given as itself or as a file that has it.
func ReadKey(key string) (string, error) {
	if strings.Count(key, "+") >= 2 && !strings.ContainsAny(key, "\n") {
		if _, err := os.Stat(key); err != nil {
			return key, nil
		}
	}
	raw, err := statedir.ReadFile(key)
	if err != nil {
		return "", fmt.Errorf("read the key: %w", err)
	}
	return strings.TrimSpace(string(raw)), nil
}
