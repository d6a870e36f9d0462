package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

// A Bundle is the record of one session with what someone who does not trust
// the server needs to check it, except for the log's public key, which must
// come another way. Encode and ParseBundle give and take its file.
type Bundle struct {
	Version    int // 1
	Session    string
	Outcome    string // that of workload_exited, once the session has ended; may be empty
	Events     []Event
	Checkpoint string   // a signed note
	Leaves     []LeafAt // where in the checkpoint's log each event is, in their order
	// Rotations are all of the checkpoint's log, oldest first: by them who pinned
	// an older key comes to the one that signed the checkpoint.
	Rotations []Rotation
}

// LeafAt is the place of an event in the global log, with its proof.
type LeafAt struct {
	Index int64
	Proof tlog.RecordProof
}

// bundleFile is a Bundle as its file has it.
type bundleFile struct {
	Version    int            `json:"version"`
	Session    string         `json:"session"`
	Outcome    string         `json:"outcome,omitempty"`
	Events     list[Event]    `json:"events"`
	Checkpoint string         `json:"checkpoint"`
	Leaves     list[leafFile] `json:"leaves"`
	// absent if there are none
	Rotations list[rotationFile] `json:"rotations"`
}

type leafFile struct {
	Index int64    `json:"index"`
	Proof [][]byte `json:"proof"` // base64
}

type rotationFile struct {
	Event Event    `json:"event"`
	Index int64    `json:"index"`
	Proof [][]byte `json:"proof"`
}

// leaf returns l with its hashes. what names it in an error.
func (l leafFile) leaf(what string) (LeafAt, error) {
	if l.Proof == nil {
		return LeafAt{}, fmt.Errorf("the proof of %s is null", what)
	}
	at := LeafAt{Index: l.Index, Proof: make(tlog.RecordProof, len(l.Proof))}
	for j, h := range l.Proof {
		if len(h) != tlog.HashSize {
			return LeafAt{}, fmt.Errorf("hash %d in the proof of %s has %d bytes", j, what, len(h))
		}
		copy(at.Proof[j][:], h)
	}
	return at, nil
}

func (at LeafAt) file() leafFile {
	l := leafFile{at.Index, make([][]byte, len(at.Proof))}
	for j := range at.Proof {
		l.Proof[j] = at.Proof[j][:]
	}
	return l
}

// A Report is what is known of a Bundle that verified.
type Report struct {
	Session  string
	Events   int
	Outcome  string // what workload_exited says; "" without one
	Complete bool   // the record reaches the end of the workload
	Why      string // what Complete means, in words
	Origin   string // of the log
	Log      tlog.Tree
	Key      string // the public key that signed the checkpoint
}

// BundleVersion is the only version of a Bundle there is.
const BundleVersion = 1

// MaxBundle is the size in bytes above which a bundle is refused unread.
const MaxBundle = 256 << 20

// ReadBundle reads a bundle of at most MaxBundle bytes from r.
func ReadBundle(r io.Reader) (Bundle, error) {
	data, err := io.ReadAll(io.LimitReader(r, MaxBundle+1))
	if err != nil {
		return Bundle{}, fmt.Errorf("read bundle: %w", err)
	}
	return ParseBundle(data)
}

// ParseBundle decodes the bytes that Encode made, and no others: every byte of
// a bundle counts. White space, unknown, repeated or reordered fields, other
// spellings of a number or string, and anything behind the final newline are
// refused.
func ParseBundle(data []byte) (Bundle, error) {
	if len(data) > MaxBundle {
		return Bundle{}, fmt.Errorf("the bundle is larger than %d bytes", MaxBundle)
	}
	var f bundleFile
	if err := Strict(data, &f); err != nil {
		return Bundle{}, fmt.Errorf("parse bundle: %w", err)
	}
	// encoding/json takes fields in any case and order, the last of repeated
	// ones, and white space. Only what is written the same way again is canonical.
	again, err := f.encode(f.Events.raw, f.Leaves.raw, f.Rotations.raw)
	if err != nil {
		return Bundle{}, fmt.Errorf("parse bundle: %w", err)
	}
	if !bytes.Equal(again, data) {
		return Bundle{}, errors.New("parse bundle: not in canonical form")
	}
	b := Bundle{Version: f.Version, Session: f.Session, Outcome: f.Outcome, Events: f.Events.items, Checkpoint: f.Checkpoint}
	for i, l := range f.Leaves.items {
		at, err := l.leaf(fmt.Sprintf("event %d", i+1))
		if err != nil {
			return Bundle{}, fmt.Errorf("parse bundle: %w", err)
		}
		b.Leaves = append(b.Leaves, at)
	}
	for i, r := range f.Rotations.items {
		at, err := leafFile{r.Index, r.Proof}.leaf(fmt.Sprintf("rotation %d", i+1))
		if err != nil {
			return Bundle{}, fmt.Errorf("parse bundle: %w", err)
		}
		b.Rotations = append(b.Rotations, Rotation{r.Event, at})
	}
	return b, nil
}

// Encode returns the one byte form of b: JSON as encoding/json writes it,
// without white space, and a newline. Empty arrays are [], but for rotations,
// which are left out.
func (b Bundle) Encode() ([]byte, error) {
	leaves := make([]leafFile, len(b.Leaves))
	for i, l := range b.Leaves {
		leaves[i] = l.file()
	}
	rotations := make([]rotationFile, len(b.Rotations))
	for i, r := range b.Rotations {
		l := r.Leaf.file()
		rotations[i] = rotationFile{r.Event, l.Index, l.Proof}
	}
	el, err := json.Marshal(append([]Event{}, b.Events...))
	if err != nil {
		return nil, fmt.Errorf("encode bundle: %w", err)
	}
	ll, err := json.Marshal(leaves)
	if err != nil {
		return nil, fmt.Errorf("encode bundle: %w", err)
	}
	rl, err := json.Marshal(rotations)
	if err != nil {
		return nil, fmt.Errorf("encode bundle: %w", err)
	}
	return bundleFile{Version: b.Version, Session: b.Session, Outcome: b.Outcome, Checkpoint: b.Checkpoint}.encode(el, ll, rl)
}

// encode returns the file of f with the given canonical arrays.
func (f bundleFile) encode(events, leaves, rotations []byte) ([]byte, error) {
	var b bytes.Buffer
	var bad error
	put := func(name string, v any) {
		j, err := json.Marshal(v)
		bad = errors.Join(bad, err)
		b.WriteString(name)
		b.Write(j)
	}
	b.Grow(len(events) + len(leaves) + len(rotations) + 2*len(f.Checkpoint) + 256)
	put(`{"version":`, f.Version)
	put(`,"session":`, f.Session)
	if f.Outcome != "" {
		put(`,"outcome":`, f.Outcome)
	}
	b.WriteString(`,"events":`)
	b.Write(events)
	put(`,"checkpoint":`, f.Checkpoint)
	b.WriteString(`,"leaves":`)
	b.Write(leaves)
	if len(rotations) > len("[]") {
		b.WriteString(`,"rotations":`)
		b.Write(rotations)
	}
	b.WriteString("}\n")
	return b.Bytes(), bad
}

// VerifyBundle checks b against the log's public key and nothing else: that
// the checkpoint is signed by it, or by a key that took its place in rotations
// that both signed and that are in the log, that each event follows from the one before it, is in
// the checkpoint's log, and comes after the one before it there too, and that
// their types are in order. It returns an error unless all hold.
//
// A record whose end is missing verifies, since a session may be running: only
// if Report.Complete is true is there nothing more to know.
func VerifyBundle(b Bundle, publicKey string) (Report, error) {
	if b.Version != BundleVersion {
		return Report{}, fmt.Errorf("bundle version %d is unknown", b.Version)
	}
	log, chain, err := openRotated([]byte(b.Checkpoint), publicKey, b.Rotations)
	if err != nil {
		return Report{}, err
	}
	if err := Verify(b.Events); err != nil {
		return Report{}, err
	}
	if b.Events[0].Session != b.Session {
		return Report{}, fmt.Errorf("the events are of session %s, the bundle of %s", b.Events[0].Session, b.Session)
	}
	if err := CheckOrder(b.Events); err != nil {
		return Report{}, err
	}
	if len(b.Leaves) != len(b.Events) {
		return Report{}, fmt.Errorf("there are %d events and %d leaves", len(b.Events), len(b.Leaves))
	}
	last := int64(-1)
	for i, l := range b.Leaves {
		h, err := Leaf(b.Events[i])
		if err != nil {
			return Report{}, err
		}
		if err := tlog.CheckRecord(tlog.RecordProof(l.Proof), log.N, log.Hash, l.Index, h); err != nil {
			return Report{}, fmt.Errorf("event %d is not in the log at %d: %w", i+1, l.Index, err)
		}
		if l.Index <= last {
			return Report{}, fmt.Errorf("event %d is in the log before event %d", i+1, i)
		}
		last = l.Index
	}
	r := Report{Session: b.Session, Events: len(b.Events), Log: log, Key: chain.current()}
	r.Origin, _, _ = strings.Cut(b.Checkpoint, "\n")
	r.Complete, r.Why = Complete(b.Events)
	for _, e := range b.Events {
		if e.Type == WorkloadExited {
			r.Outcome = e.Data.Outcome
		}
	}
	if b.Outcome != "" && b.Outcome != r.Outcome {
		if r.Outcome == "" {
			return Report{}, fmt.Errorf("the session is said to have %s, but the event that says so was cut off", b.Outcome)
		}
		return Report{}, fmt.Errorf("the session is said to have %s, but the record says %s", b.Outcome, r.Outcome)
	}
	return r, nil
}

// A list decodes an array element by element and stops at the first that is
// not canonical, so that a hostile file of a million "{}" does not become a
// million large structs. Its raw bytes are then canonical too.
type list[T any] struct {
	items []T
	raw   []byte
}

func (l *list[T]) UnmarshalJSON(data []byte) error {
	d := json.NewDecoder(bytes.NewReader(data))
	if t, err := d.Token(); err != nil || t != json.Delim('[') {
		return errors.New("not an array")
	}
	*l = list[T]{raw: bytes.Clone(data)}
	size := len("[]")
	var raw json.RawMessage
	for d.More() {
		if err := d.Decode(&raw); err != nil {
			return err
		}
		var v T
		if err := json.Unmarshal(raw, &v); err != nil {
			return err
		}
		again, err := json.Marshal(v)
		if err != nil {
			return err
		}
		if !bytes.Equal(again, raw) {
			return fmt.Errorf("element %d is not in canonical form", len(l.items)+1)
		}
		if size += len(raw); len(l.items) > 0 {
			size += len(",")
		}
		l.items = append(l.items, v)
	}
	if size != len(data) {
		return errors.New("an array with white space")
	}
	return nil
}

// Strict decodes exactly one JSON value with no field that v does not have.
func Strict(data []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("there is something behind the end")
	}
	return nil
}
