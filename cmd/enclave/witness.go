package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/statedir"
	"github.com/enclave-run/enclave/internal/ui"
	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/tlog"
)

// statusUnasked is that of a witness that could not ask: nothing is known to be
// wrong, and nothing to be right.
const statusUnasked = 2

// A witness remembers the last checkpoint of a log that it saw, and demands of
// each later one that it continues that.
type witness struct {
	remember   string // the file
	key        string // pinned by the operator; may be empty if something is remembered
	trustFirst bool
	copies     string // a checkpoint file to compare too, or ""
	ask        func(context.Context, func(context.Context, *enclave.Client) error) error
}

// seen is what a witness remembers.
type seen struct {
	Version    int    `json:"version"`    // 1
	Pinned     string `json:"pinned"`     // the key it began with
	Key        string `json:"key"`        // the key that signed Checkpoint
	Checkpoint string `json:"checkpoint"` // a signed note
}

// A refusal is a log that is not the continuation of the one that was seen, with
// what was offered.
type refusal struct {
	err     error
	offered string
}

func (e *refusal) Error() string { return e.err.Error() }
func (e *refusal) Unwrap() error { return e.err }

func (p *program) auditWitness() *cobra.Command {
	var w witness
	var once, asJSON bool
	var every time.Duration
	var key string
	c := &cobra.Command{
		Use:   "witness",
		Short: "Remember the log's last checkpoint and refuse a log that does not continue it",
		Long: `Witness asks a server for the newest checkpoint of its log and for the proof that
the log only grew since the last one it saw, which it keeps in a file of its own.
Run it where who can change the server's database or has the log's key can't
change that file.

It exits 1, and says why, if the log became shorter, was forked or rewritten, or
is signed by another key than the one that was pinned or one that follows it in
the log's own rotations; what it remembers stays, and what it was offered is kept
beside it, in FILE.refused. It exits 2 if it could not ask.

The first checkpoint has nothing to continue: --trust-first accepts it. Leave
that out later: then a lost file is noticed.

With --checkpoints the log must also have the last checkpoint of that file, which
` + "`enclave serve --checkpoint-file`" + ` wrote; ` + "`enclave audit verify --checkpoints`" + ` checks all
of them against an exported log.`,
		Example: `  enclave audit witness --remember seen.json --key log.vkey --trust-first --once
  enclave audit witness --remember seen.json --every 10s
  enclave audit witness --remember seen.json --checkpoints /mnt/other/log.checkpoints --once`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case w.remember == "":
				return errors.New("name the file that remembers the last checkpoint with --remember FILE")
			case !once && every < time.Second:
				return fmt.Errorf("--every %s is less than a second", every)
			}
			if key != "" {
				var err error
				if w.key, err = readKey(key); err != nil {
					return err
				}
			}
			w.ask = p.client
			ctx, in := ui.Interruptible(cmd.Context())
			defer in.Stop()
			for {
				s, err := w.look(ctx)
				switch bad := (*refusal)(nil); {
				case in.Status() != 0:
					return &exit{in.Status(), nil}
				case errors.As(err, &bad):
					return &exit{statusFailed, fmt.Errorf("refused: %w", bad)}
				case err != nil && once:
					return &exit{statusUnasked, err}
				case err != nil:
					fmt.Fprintf(p.err, "%s could not ask, nothing is known: %s\n", p.now().UTC().Format(time.RFC3339), ui.Message(err))
				default:
					if err := p.showSeen(s, asJSON); err != nil {
						return err
					}
				}
				if once {
					return nil
				}
				select {
				case <-ctx.Done():
				case <-time.After(every):
				}
			}
		},
	}
	f := c.Flags()
	f.StringVar(&w.remember, "remember", "", "the `FILE` that remembers the last checkpoint")
	f.StringVar(&key, "key", "", "the log's public key, or a `FILE` with it; needed once")
	f.BoolVar(&w.trustFirst, "trust-first", false, "accept the first checkpoint, with nothing to compare it with")
	f.StringVar(&w.copies, "checkpoints", "", "also demand the last checkpoint of this `FILE`")
	f.BoolVar(&once, "once", false, "ask once and end")
	f.DurationVar(&every, "every", 10*time.Second, "how often to ask")
	f.BoolVar(&asJSON, "json", false, "print as JSON, one object for each time")
	return c
}

func (p *program) showSeen(s seen, asJSON bool) error {
	tree, err := audit.ParseCheckpoint([]byte(s.Checkpoint))
	if err != nil {
		return err
	}
	if asJSON {
		b, err := json.Marshal(map[string]any{"size": tree.N, "root": tree.Hash.String(), "key": s.Key, "consistent": true})
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(p.out, "%s\n", b)
		return err
	}
	_, err = fmt.Fprintf(p.out, "%s the log only grew: %d events, root %s\n", p.now().UTC().Format(time.RFC3339), tree.N, tree.Hash)
	return err
}

// look asks once and, if all is well, remembers what it saw. Before that, and on
// any error, what is remembered is not touched.
func (w *witness) look(ctx context.Context) (seen, error) {
	old, err := w.recall()
	if err != nil {
		return seen{}, err
	}
	var next seen
	err = w.ask(ctx, func(ctx context.Context, cl *enclave.Client) error {
		next, err = w.compare(ctx, cl, old)
		return err
	})
	var bad *refusal
	if errors.As(err, &bad) {
		evidence, jerr := json.MarshalIndent(map[string]any{"remembered": old, "offered": bad.offered, "why": bad.Error()}, "", "  ")
		if err := errors.Join(jerr, statedir.WriteFile(w.remember+".refused", append(evidence, '\n'), 0o644)); err != nil {
			return seen{}, &refusal{err: fmt.Errorf("%w; the evidence could not be kept: %w", bad, err)}
		}
		return seen{}, bad
	}
	if err != nil {
		return seen{}, err
	}
	raw, err := json.Marshal(next)
	if err != nil {
		return seen{}, err
	}
	if err := errors.Join(statedir.WriteFile(w.remember, append(raw, '\n'), 0o644), statedir.SyncDir(filepath.Dir(w.remember))); err != nil {
		return seen{}, fmt.Errorf("remember the checkpoint: %w", err)
	}
	return next, nil
}

// recall returns what is remembered; its Checkpoint is empty if that is nothing
// yet and may be so.
func (w *witness) recall() (seen, error) {
	raw, err := statedir.ReadFile(w.remember)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !w.trustFirst:
		return seen{}, &refusal{err: fmt.Errorf("%s is not there: it was lost, or this is the first time: then say --trust-first", w.remember)}
	case errors.Is(err, fs.ErrNotExist) && w.key == "":
		return seen{}, errors.New("the first time needs the log's public key: --key FILE; `enclave audit key` prints it on the server")
	case errors.Is(err, fs.ErrNotExist):
		return seen{Version: 1, Pinned: w.key, Key: w.key}, nil
	case err != nil:
		return seen{}, err
	}
	var s seen
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil || s.Version != 1 || s.Checkpoint == "" {
		return seen{}, fmt.Errorf("%s is not a witness's memory: %w", w.remember, errors.Join(err, errors.New("restore it from a copy")))
	}
	if w.key != "" && w.key != s.Pinned && w.key != s.Key {
		return seen{}, &refusal{err: fmt.Errorf("%s was begun with another key than --key", w.remember)}
	}
	return s, nil
}

// compare returns what is to be remembered after old.
func (w *witness) compare(ctx context.Context, cl *enclave.Client, old seen) (seen, error) {
	// The copy is read first: the server writes there only what its log has.
	kept, err := w.lastCopy()
	if err != nil {
		return seen{}, err
	}
	newest, err := cl.Checkpoint(ctx)
	if err != nil {
		return seen{}, err
	}
	refuse := func(err error) (seen, error) { return seen{}, &refusal{err, string(newest)} }
	now, err := audit.ParseCheckpoint(newest)
	if err != nil {
		return refuse(err)
	}
	from := tlog.Tree{}
	if old.Checkpoint != "" {
		if from, err = audit.OpenCheckpoint([]byte(old.Checkpoint), old.Key); err != nil {
			return seen{}, fmt.Errorf("%s: %w", w.remember, err)
		}
	}
	if now.N < from.N {
		return refuse(fmt.Errorf("the log has shrunk from %d to %d events", from.N, now.N))
	}
	c, err := w.proof(ctx, cl, from.N, newest, now)
	if err != nil {
		return seen{}, err
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
			return seen{}, err
		}
	}
	if kept.Note != nil {
		// Its root is compared; it needs no signature.
		if err := audit.Grown(kept.Tree, now, c.Proof); err != nil {
			return refuse(fmt.Errorf("compared with %s: %w", w.copies, err))
		}
	}
	return old, nil
}

// proof asks how the log came from a size to the one of newest.
func (w *witness) proof(ctx context.Context, cl *enclave.Client, from int64, newest []byte, now tlog.Tree) (audit.Consistency, error) {
	if now.N == 0 {
		return audit.Consistency{}, nil // nothing to prove, and no size to ask for
	}
	answer, err := cl.Consistency(ctx, from, now.N)
	if e := (*enclave.Error)(nil); errors.As(err, &e) && e.Status/100 == 4 && e.Status != 401 && e.Status != 403 && e.Status != 429 {
		return audit.Consistency{}, &refusal{fmt.Errorf("the server does not prove that its log of %d events begins with that of %d: %w", now.N, from, err), string(newest)}
	}
	if err != nil {
		return audit.Consistency{}, err
	}
	c, err := readConsistency(answer)
	if err != nil {
		return audit.Consistency{}, &refusal{err, string(newest)}
	}
	return c, nil
}

// lastCopy returns the last checkpoint of the checkpoint file, or none if there
// is no file to compare.
func (w *witness) lastCopy() (last audit.Checkpoint, err error) {
	if w.copies == "" {
		return last, nil
	}
	f, err := os.Open(w.copies)
	if err != nil {
		return last, err
	}
	defer f.Close()
	for c, err := range audit.Published(f) {
		if err != nil {
			return last, &refusal{err, string(last.Note)}
		}
		last = c
	}
	if last.Note == nil {
		return last, &refusal{fmt.Errorf("%s has no checkpoint", w.copies), ""}
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
