// Package parity says whether one request had one verdict on several backends
// (invariant 2), and certifies it. What may differ is in one list, exceptions;
// a value that differs anywhere else, a key more or less, or another order is a
// disagreement. It never takes a control plane's word for a comparison.
package parity

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
)

// A Record is what one control plane showed of a session that has ended, before
// its teardown.
type Record struct {
	Kind    string // of its backend
	Verdict Verdict
	Events  []Event
}

// A Verdict is how a session ended. It must be the same on every backend.
type Verdict struct {
	Outcome    string          `json:"outcome"`
	KillReason string          `json:"killReason,omitempty"`
	ExitCode   *int            `json:"exitCode"` // null for a session that was killed
	Result     json.RawMessage `json:"result"`   // what the code gave enclave.result, or null
	Truncated  bool            `json:"truncated"`
}

// An Event is the type and the data of an event, as the server hashed it.
type Event struct {
	Type string          `json:"type"`
	Data json.RawMessage `json:"data"`
}

// Types returns the types of the events in their order.
func (r Record) Types() []string {
	types := make([]string, len(r.Events))
	for i, e := range r.Events {
		types[i] = e.Type
	}
	return types
}

// excepted stands for a value that may differ.
var excepted = json.RawMessage(`"may differ"`)

// reduced returns the data of the events with excepted in the place of what may
// differ, once that is what its exception says it may be.
func (r Record) reduced() ([]map[string]json.RawMessage, error) {
	if _, ok := kinds[r.Kind]; !ok {
		return nil, fmt.Errorf("nothing is declared of the backend %q", r.Kind)
	}
	all := make([]map[string]json.RawMessage, len(r.Events))
	for i, e := range r.Events {
		whole := map[string]json.RawMessage{}
		if err := json.Unmarshal(e.Data, &whole); err != nil || whole == nil {
			return nil, fmt.Errorf("the data of event %d, %s, is not an object", i+1, e.Type)
		}
		all[i] = map[string]json.RawMessage{}
		for field, value := range whole {
			x := exception(r.Verdict, e.Type, field)
			if x == nil {
				all[i][field] = value
				continue
			}
			if err := x.holds(r.Kind, string(value), whole); err != nil {
				return nil, fmt.Errorf("%s of event %d on %s: %w", x, i+1, r.Kind, err)
			}
			all[i][field] = excepted
		}
	}
	return all, nil
}

// Shape returns everything of r that must be the same on every backend, in one
// byte form: two records agree if and only if their shapes are equal.
func (r Record) Shape() ([]byte, error) {
	data, err := r.reduced()
	if err != nil {
		return nil, err
	}
	v, err := r.Verdict.Canonical()
	if err != nil {
		return nil, err
	}
	raw, err := json.Marshal([]any{v, r.Types(), data}) // maps are sorted by key
	if err != nil {
		return nil, fmt.Errorf("encode the shape of a record: %w", err)
	}
	return raw, nil
}

// Canonical returns v with its result without white space, and null for none.
func (v Verdict) Canonical() (Verdict, error) {
	if len(v.Result) == 0 {
		v.Result = json.RawMessage("null")
	}
	var b bytes.Buffer
	if err := json.Compact(&b, v.Result); err != nil {
		return v, fmt.Errorf("the result is not JSON: %w", err)
	}
	v.Result = b.Bytes()
	return v, nil
}

// DataDigest returns the SHA-256, in hex, of the events' data in their order
// with what may differ taken out.
func (r Record) DataDigest() (string, error) {
	data, err := r.reduced()
	if err != nil {
		return "", err
	}
	raw, err := json.Marshal(data)
	if err != nil {
		return "", fmt.Errorf("encode the data of a record: %w", err)
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:]), nil
}

// Compare returns the first way in which b differs from a, in words, or "".
func Compare(a, b Record) (string, error) {
	one, err := a.Shape()
	if err != nil {
		return "", err
	}
	other, err := b.Shape()
	if err != nil {
		return "", err
	}
	if bytes.Equal(one, other) {
		return "", nil
	}
	// Shape had no error, so none of what it is made of has one.
	va, _ := a.Verdict.Canonical()
	vb, _ := b.Verdict.Canonical()
	x, _ := json.Marshal(va)
	y, _ := json.Marshal(vb)
	if !bytes.Equal(x, y) {
		return fmt.Sprintf("the verdict is %s on %s and %s on %s", x, a.Kind, y, b.Kind), nil
	}
	if !slices.Equal(a.Types(), b.Types()) {
		return fmt.Sprintf("the events are %v on %s and %v on %s", a.Types(), a.Kind, b.Types(), b.Kind), nil
	}
	as, _ := a.reduced()
	bs, _ := b.reduced()
	for i := range as {
		for _, field := range keys(as[i], bs[i]) {
			if v, w := as[i][field], bs[i][field]; !bytes.Equal(v, w) {
				return fmt.Sprintf("%s of event %d, %s, is %s on %s and %s on %s",
					field, i+1, a.Events[i].Type, absent(v), a.Kind, absent(w), b.Kind), nil
			}
		}
	}
	return "the records differ", nil
}

func absent(raw json.RawMessage) string {
	if raw == nil {
		return "absent"
	}
	return string(raw)
}

// keys returns the keys of both, sorted, without repeats.
func keys(a, b map[string]json.RawMessage) []string {
	var all []string
	for _, m := range []map[string]json.RawMessage{a, b} {
		for k := range m {
			all = append(all, k)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// Applied returns the exceptions without which the records of one request would
// differ, in the order of the list.
func Applied(records []Record) []Exception {
	var applied []Exception
	for _, x := range exceptions {
		if slices.ContainsFunc(records, func(r Record) bool { return !bytes.Equal(r.values(x), records[0].values(x)) }) {
			applied = append(applied, x)
		}
	}
	return applied
}

// values returns what r has in the place of an exception, event after event.
func (r Record) values(x Exception) []byte {
	var all []byte
	for _, e := range r.Events {
		var data map[string]json.RawMessage
		if e.Type == x.Type && json.Unmarshal(e.Data, &data) == nil {
			all = append(append(all, data[x.Field]...), 0)
		}
	}
	return all
}

// Stale returns the exceptions that backends of these kinds must have made use
// of, if every kind of event was compared, and did not: they excuse nothing, and
// have to go.
func Stale(kinds []string, applied []Exception) []Exception {
	var stale []Exception
	for _, x := range exceptions {
		if x.between(kinds) && !slices.ContainsFunc(applied, func(a Exception) bool { return a.Type == x.Type && a.Field == x.Field }) {
			stale = append(stale, x)
		}
	}
	return stale
}
