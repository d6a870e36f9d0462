package verify

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/statedir"
	"golang.org/x/mod/sumdb/tlog"
)

// A Witness remembers the last checkpoint of a log that it saw, and demands of
// each later one that it continues that.
type Witness struct {
	Remember   string // the file
	Key        string // pinned by the operator; may be empty if something is remembered
	TrustFirst bool
	Copies     string // a checkpoint file to compare too, or ""
	// Ask calls a function with a client of the server.
	Ask func(context.Context, func(context.Context, *enclave.Client) error) error
}

// Seen is what a witness remembers.
type Seen struct {
	Version    int    `json:"version"`    // 1
	Pinned     string `json:"pinned"`     // the key it began with
	Key        string `json:"key"`        // the key that signed Checkpoint
	Checkpoint string `json:"checkpoint"` // a signed note
}

// A Refusal is a log that is not the continuation of the one that was seen, with
// what was offered.
type Refusal struct {
	err     error
	offered string
}

func (e *Refusal) Error() string { return e.err.Error() }
func (e *Refusal) Unwrap() error { return e.err }

// Look asks once and, if all is well, remembers what it saw. Before that, and on
// any error, what is remembered is not touched.
func (w *Witness) Look(ctx context.Context) (Seen, error) {
	old, err := w.recall()
	if err != nil {
		return Seen{}, err
	}
	var next Seen
	err = w.Ask(ctx, func(ctx context.Context, cl *enclave.Client) error {
		next, err = w.compare(ctx, cl, old)
		return err
	})
	var bad *Refusal
	if errors.As(err, &bad) {
		evidence, jerr := json.MarshalIndent(map[string]any{"remembered": old, "offered": bad.offered, "why": bad.Error()}, "", "  ")
		if err := errors.Join(jerr, statedir.WriteFile(w.Remember+".refused", append(evidence, '\n'), 0o644)); err != nil {
			return Seen{}, &Refusal{err: fmt.Errorf("%w; the evidence could not be kept: %w", bad, err)}
		}
		return Seen{}, bad
	}
	if err != nil {
		return Seen{}, err
	}
	raw, err := json.Marshal(next)
	if err != nil {
		return Seen{}, err
	}
	if err := errors.Join(statedir.WriteFile(w.Remember, append(raw, '\n'), 0o644), statedir.SyncDir(filepath.Dir(w.Remember))); err != nil {
		return Seen{}, fmt.Errorf("remember the checkpoint: %w", err)
	}
	return next, nil
}

// recall returns what is remembered; its Checkpoint is empty if that is nothing
// yet and may be so.
func (w *Witness) recall() (Seen, error) {
	raw, err := statedir.ReadFile(w.Remember)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !w.TrustFirst:
		return Seen{}, &Refusal{err: fmt.Errorf("%s is not there: it was lost, or this is the first time: then say --trust-first", w.Remember)}
	case errors.Is(err, fs.ErrNotExist) && w.Key == "":
		return Seen{}, errors.New("the first time needs the log's public key: --key FILE; `enclave audit key` prints it on the server")
	case errors.Is(err, fs.ErrNotExist):
		return Seen{Version: 1, Pinned: w.Key, Key: w.Key}, nil
	case err != nil:
		return Seen{}, err
	}
	var s Seen
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil || s.Version != 1 || s.Checkpoint == "" {
		return Seen{}, fmt.Errorf("%s is not a witness's memory: %w", w.Remember, errors.Join(err, errors.New("restore it from a copy")))
	}
	if w.Key != "" && w.Key != s.Pinned && w.Key != s.Key {
		return Seen{}, &Refusal{err: fmt.Errorf("%s was begun with another key than --key", w.Remember)}
	}
	return s, nil
}

// compare returns what is to be remembered after old.
func (w *Witness) compare(ctx context.Context, cl *enclave.Client, old Seen) (Seen, error) {
	// The copy is read first: the server writes there only what its log has.
	kept, err := w.lastCopy()
	if err != nil {
		return Seen{}, err
	}
	newest, err := cl.Checkpoint(ctx)
	if err != nil {
		return Seen{}, err
	}
	refuse := func(err error) (Seen, error) { return Seen{}, &Refusal{err, string(newest)} }
	now, err := audit.ParseCheckpoint(newest)
	if err != nil {
		return refuse(err)
	}
	from := tlog.Tree{}
	if old.Checkpoint != "" {
		if from, err = audit.OpenCheckpoint([]byte(old.Checkpoint), old.Key); err != nil {
			return Seen{}, fmt.Errorf("%s: %w", w.Remember, err)
		}
	}
	if now.N < from.N {
		return refuse(fmt.Errorf("the log has shrunk from %d to %d events", from.N, now.N))
	}
	c, err := w.proof(ctx, cl, from.N, newest, now)
	if err != nil {
		return Seen{}, err
	}
	if old.Checkpoint == "" {
		key, err := audit.Trace(old.Key, newest, c.Rotations)
		if err != nil {
			return refuse(err)
		}
		old.Key = key
	} else if old.Key, err = audit.Advance([]byte(old.Checkpoint), old.Key, newest, c.Proof, c.Rotations); err != nil {
		return refuse(err)
	}
	old.Checkpoint = string(newest)
	if kept.Note != nil && kept.Tree.N <= now.N {
		if c, err = w.proof(ctx, cl, kept.Tree.N, newest, now); err != nil {
			return Seen{}, err
		}
	}
	if kept.Note != nil {
		// Its root is compared; it needs no signature.
		if err := audit.Grown(kept.Tree, now, c.Proof); err != nil {
			return refuse(fmt.Errorf("compared with %s: %w", w.Copies, err))
		}
	}
	return old, nil
}

// proof asks how the log came from a size to the one of newest.
func (w *Witness) proof(ctx context.Context, cl *enclave.Client, from int64, newest []byte, now tlog.Tree) (audit.Consistency, error) {
	if now.N == 0 {
		return audit.Consistency{}, nil // nothing to prove, and no size to ask for
	}
	answer, err := cl.Consistency(ctx, from, now.N)
	if e := (*enclave.Error)(nil); errors.As(err, &e) && e.Status/100 == 4 && e.Status != 401 && e.Status != 403 && e.Status != 429 {
		return audit.Consistency{}, &Refusal{fmt.Errorf("the server does not prove that its log of %d events begins with that of %d: %w", now.N, from, err), string(newest)}
	}
	if err != nil {
		return audit.Consistency{}, err
	}
	c, err := readConsistency(answer)
	if err != nil {
		return audit.Consistency{}, &Refusal{err, string(newest)}
	}
	return c, nil
}

// lastCopy returns the last checkpoint of the checkpoint file, or none if there
// is no file to compare.
func (w *Witness) lastCopy() (last audit.Checkpoint, err error) {
	if w.Copies == "" {
		return last, nil
	}
	f, err := os.Open(w.Copies)
	if err != nil {
		return last, err
	}
	defer f.Close()
	for c, err := range audit.Published(f) {
		if err != nil {
			return last, &Refusal{err, string(last.Note)}
		}
		last = c
	}
	if last.Note == nil {
		return last, &Refusal{fmt.Errorf("%s has no checkpoint", w.Copies), ""}
	}
	return last, nil
}

// readConsistency returns c with its hashes and events decoded; what can't be
// is refused.
func readConsistency(c enclave.Consistency) (audit.Consistency, error) {
	out := audit.Consistency{From: c.From, To: c.To, Checkpoint: []byte(c.Checkpoint)}
	proof, err := readHashes(c.Proof)
	if err != nil {
		return out, err
	}
	out.Proof = proof
	for _, r := range c.Rotations {
		e := audit.Event{Session: r.Event.Session, Seq: r.Event.Seq, Time: r.Event.Time, Type: audit.Type(r.Event.Type), Hash: r.Event.Hash}
		d := json.NewDecoder(bytes.NewReader(r.Event.Data))
		d.DisallowUnknownFields()
		if err := d.Decode(&e.Data); err != nil {
			return out, fmt.Errorf("a rotation of the log's key: %w", err)
		}
		proof, err := readHashes(r.Proof)
		if err != nil {
			return out, err
		}
		out.Rotations = append(out.Rotations, audit.Rotation{Event: e, Leaf: audit.LeafAt{Index: r.Index, Proof: proof}})
	}
	return out, nil
}

func readHashes(in [][]byte) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(in))
	for i, h := range in {
		if len(h) != tlog.HashSize {
			return nil, fmt.Errorf("a hash of a proof has %d bytes", len(h))
		}
		copy(out[i][:], h)
	}
	return out, nil
}
