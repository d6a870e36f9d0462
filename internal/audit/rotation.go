package audit

import (
	"encoding/base64"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// A Rotation is a key_rotated event and its place in the log: from that place
// on the log is signed by another key.
type Rotation struct {
	Event Event
	Leaf  LeafAt
}

// rotationDomain begins what both keys sign. No checkpoint can begin so: the
// name of a log has no space.
const rotationDomain = "enclave audit key rotation v1\n"

// Rotate returns the data of the event by which next takes the place of s: what
// both keys sign is the domain "enclave audit key rotation v1\n" and the two
// public keys, old and new, each on a line.
func (s *Signer) Rotate(next *Signer) (Data, error) {
	if next == nil || next.origin != s.origin {
		return Data{}, fmt.Errorf("rotate the key of log %q: the new key is not one of this log", s.origin)
	}
	if next.public == s.public {
		return Data{}, errors.New("rotate the log's key: the new key is the old one")
	}
	text := rotationText(s.public, next.public)
	d := Data{OldKey: s.public, NewKey: next.public}
	for sig, signer := range map[*string]note.Signer{&d.OldSignature: s.signer, &d.NewSignature: next.signer} {
		raw, err := signer.Sign(text)
		if err != nil {
			return Data{}, fmt.Errorf("rotate the log's key: %w", err)
		}
		*sig = base64.StdEncoding.EncodeToString(raw)
	}
	return d, nil
}

func rotationText(old, next string) []byte { return []byte(rotationDomain + old + "\n" + next + "\n") }

// checkRotation reports whether d is a rotation that both of its keys signed,
// and nothing besides.
func checkRotation(d Data) error {
	if d != (Data{OldKey: d.OldKey, NewKey: d.NewKey, OldSignature: d.OldSignature, NewSignature: d.NewSignature}) {
		return errors.New("a rotation has other fields than its keys and signatures")
	}
	old, err := note.NewVerifier(d.OldKey)
	if err != nil {
		return fmt.Errorf("a rotation's old key: %w", err)
	}
	next, err := note.NewVerifier(d.NewKey)
	if err != nil {
		return fmt.Errorf("a rotation's new key: %w", err)
	}
	if old.Name() != next.Name() || d.OldKey == d.NewKey {
		return errors.New("a rotation is from one key of a log to another of the same log")
	}
	text := rotationText(d.OldKey, d.NewKey)
	for _, c := range []struct {
		which, sig string
		key        note.Verifier
	}{{"old", d.OldSignature, old}, {"new", d.NewSignature, next}} {
		raw, err := base64.StdEncoding.DecodeString(c.sig)
		if err != nil || base64.StdEncoding.EncodeToString(raw) != c.sig || !c.key.Verify(text, raw) {
			return fmt.Errorf("a rotation is not signed by its %s key", c.which)
		}
	}
	return nil
}

// A keyChain is what is known of the keys of a log, oldest first: each but the
// first took the place of the one before it.
type keyChain struct {
	keys []string
	at   []int64 // keys[i+1] took over at index at[i] of the log
}

// current returns the key that signs at the end.
func (c keyChain) current() string { return c.keys[len(c.keys)-1] }

// add takes the rotation d at index into c, which may be empty.
func (c *keyChain) add(d Data, index int64) error {
	if err := checkRotation(d); err != nil {
		return err
	}
	if len(c.keys) == 0 {
		c.keys = []string{d.OldKey}
	}
	if c.current() != d.OldKey || slices.Contains(c.keys, d.NewKey) {
		return errors.New("a rotation does not follow from the one before it")
	}
	c.keys, c.at = append(c.keys, d.NewKey), append(c.at, index)
	return nil
}

// signer returns the key that signs a log of size.
func (c keyChain) signer(size int64) string {
	i := 0
	for i < len(c.at) && c.at[i] < size {
		i++
	}
	return c.keys[i]
}

// openRotated opens a checkpoint whose signer is public or comes from it, or
// leads to it, through rotations, which are all of the checkpoint's log.
func openRotated(checkpoint []byte, public string, rotations []Rotation) (tlog.Tree, keyChain, error) {
	if len(rotations) == 0 {
		tree, err := OpenCheckpoint(checkpoint, public)
		return tree, keyChain{keys: []string{public}}, err
	}
	var c keyChain
	events := make([]Event, len(rotations))
	for i, r := range rotations {
		events[i] = r.Event
		if err := c.add(r.Event.Data, r.Leaf.Index); err != nil {
			return tlog.Tree{}, c, fmt.Errorf("rotation %d: %w", i+1, err)
		}
	}
	if events[0].Session != LogRecord {
		return tlog.Tree{}, c, fmt.Errorf("the rotations are of record %q, not of the log's own", events[0].Session)
	}
	if err := errors.Join(Verify(events), CheckOrder(events)); err != nil {
		return tlog.Tree{}, c, fmt.Errorf("the rotations: %w", err)
	}
	if !slices.Contains(c.keys, public) {
		return tlog.Tree{}, c, errors.New("the rotations neither begin with the log's public key nor come to it: this is another log, or another key")
	}
	tree, err := OpenCheckpoint(checkpoint, c.current())
	if err != nil {
		return tlog.Tree{}, c, err
	}
	last := int64(-1)
	for i, r := range rotations {
		h, err := Leaf(r.Event)
		if err != nil {
			return tlog.Tree{}, c, err
		}
		if err := tlog.CheckRecord(r.Leaf.Proof, tree.N, tree.Hash, r.Leaf.Index, h); err != nil {
			return tlog.Tree{}, c, fmt.Errorf("rotation %d is not in the log at %d: %w", i+1, r.Leaf.Index, err)
		}
		if r.Leaf.Index <= last {
			return tlog.Tree{}, c, fmt.Errorf("rotation %d is in the log before rotation %d", i+1, i)
		}
		last = r.Leaf.Index
	}
	return tree, c, nil
}

// Trace returns the key that signed checkpoint: public itself, or the one that
// rotations, all of the checkpoint's log, lead to from it.
func Trace(public string, checkpoint []byte, rotations []Rotation) (current string, err error) {
	_, chain, err := openRotated(checkpoint, public, rotations)
	if err != nil {
		return "", err
	}
	return chain.current(), nil
}

// Advance reports whether the log of checkpoint newer continues that of
// checkpoint older, which key signed, and returns the key that signed newer: key
// itself, or the one that rotations, all of the newer log, lead to from it. A
// log that is shorter, or that does not begin with the older one, is an error,
// and so is a key that signed more than the log had when it was replaced.
func Advance(older []byte, key string, newer []byte, proof tlog.TreeProof, rotations []Rotation) (current string, err error) {
	o, err := OpenCheckpoint(older, key)
	if err != nil {
		return "", fmt.Errorf("older checkpoint: %w", err)
	}
	n, chain, err := openRotated(newer, key, rotations)
	if err != nil {
		return "", fmt.Errorf("newer checkpoint: %w", err)
	}
	if err := Grown(o, n, proof); err != nil {
		return "", err
	}
	if chain.signer(o.N) != key {
		return "", fmt.Errorf("the log of %d events was signed by a key that was not in use then", o.N)
	}
	return chain.current(), nil
}
