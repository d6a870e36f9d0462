package audit

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// A Signer signs checkpoints of the global log. It holds the log's private
// key, in a closure that fmt can't look into, and returns it to no one.
type Signer struct {
	origin string
	public string
	signer note.Signer
}

// GenerateKey makes the key of a new log. The origin names the log in every
// checkpoint, as a URL without scheme does: "enclave.example.com/log". The
// private key, a line of text, is a secret that only NewSigner should read.
func GenerateKey(rand io.Reader, origin string) (private []byte, public string, err error) {
	if err := checkOrigin(origin); err != nil {
		return nil, "", err
	}
	skey, vkey, err := note.GenerateKey(rand, origin)
	if err != nil {
		return nil, "", fmt.Errorf("generate log key: %w", err)
	}
	return []byte(skey + "\n"), vkey, nil
}

// NewSigner returns the Signer whose private key GenerateKey made. Errors never
// quote the key.
func NewSigner(private []byte) (*Signer, error) {
	skey := strings.TrimSuffix(string(private), "\n")
	s, err := note.NewSigner(skey)
	if err != nil {
		return nil, errors.New("the log's private key is malformed")
	}
	if err := checkOrigin(s.Name()); err != nil {
		return nil, err
	}
	// PRIVATE+KEY+<name>+<hash>+<base64>; base64 may have a + of its own.
	raw, err := base64.StdEncoding.DecodeString(strings.SplitN(skey, "+", 5)[4])
	if err != nil || len(raw) != 1+ed25519.SeedSize {
		return nil, errors.New("the log's private key is malformed")
	}
	key := ed25519.NewKeyFromSeed(raw[1:])
	public, err := note.NewEd25519VerifierKey(s.Name(), key.Public().(ed25519.PublicKey))
	if err != nil {
		return nil, fmt.Errorf("derive the log's public key: %w", err)
	}
	return &Signer{origin: s.Name(), public: public, signer: s}, nil
}

// Public returns the key that verifies what s signs, in the form of
// golang.org/x/mod/sumdb/note: name+hash+key.
func (s *Signer) Public() string { return s.public }

// Origin returns the name of the log.
func (s *Signer) Origin() string { return s.origin }

// Checkpoint returns t, signed: a note as c2sp.org/tlog-checkpoint has it,
// without extension lines and with the log's signature alone.
func (s *Signer) Checkpoint(t tlog.Tree) ([]byte, error) {
	b, err := note.Sign(&note.Note{Text: checkpointText(s.origin, t)}, s.signer)
	if err != nil {
		return nil, fmt.Errorf("sign checkpoint of size %d: %w", t.N, err)
	}
	return b, nil
}

// OpenCheckpoint returns the tree that a checkpoint describes, if public signed
// it. It accepts the bytes that Signer.Checkpoint makes and no others.
func OpenCheckpoint(checkpoint []byte, public string) (tlog.Tree, error) {
	text, origin, err := openNote("checkpoint", checkpoint, public)
	if err != nil {
		return tlog.Tree{}, err
	}
	t, err := ParseCheckpoint(checkpoint)
	if err != nil {
		return tlog.Tree{}, err
	}
	if text != checkpointText(origin, t) {
		return tlog.Tree{}, fmt.Errorf("the checkpoint is not one of log %q", origin)
	}
	return t, nil
}

// openNote returns the text of a note that public alone signed, and the name of
// the key. It takes one byte form of a note: note.Open alone would pass over
// signatures it does not know and over unused bits of base64, so that some
// changes to the bytes went unseen. what names the note in an error.
func openNote(what string, raw []byte, public string) (text, name string, err error) {
	v, err := note.NewVerifier(public)
	if err != nil {
		return "", "", fmt.Errorf("the log's public key: %w", err)
	}
	if len(raw) > maxCheckpoint {
		return "", "", fmt.Errorf("the %s is too long", what)
	}
	n, err := note.Open(raw, note.VerifierList(v))
	if err != nil {
		return "", "", fmt.Errorf("the %s's signature: %w", what, err)
	}
	sig, err := base64.StdEncoding.DecodeString(n.Sigs[0].Base64)
	if err != nil {
		return "", "", fmt.Errorf("the %s's signature: %w", what, err)
	}
	want := n.Text + "\n— " + v.Name() + " " + base64.StdEncoding.EncodeToString(sig) + "\n"
	if string(raw) != want {
		return "", "", fmt.Errorf("the %s is not in canonical form", what)
	}
	return n.Text, v.Name(), nil
}

// ParseCheckpoint returns the tree that a checkpoint describes, without asking
// who signed it. It is for comparing a checkpoint with a tree one holds.
func ParseCheckpoint(checkpoint []byte) (tlog.Tree, error) {
	if len(checkpoint) > maxCheckpoint {
		return tlog.Tree{}, errors.New("the checkpoint is too long")
	}
	text, _, ok := strings.Cut(string(checkpoint), "\n\n")
	lines := strings.Split(text, "\n")
	if !ok || len(lines) != 3 {
		return tlog.Tree{}, errors.New("the checkpoint is malformed")
	}
	n, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil || n < 0 {
		return tlog.Tree{}, errors.New("the checkpoint's size is malformed")
	}
	root, err := tlog.ParseHash(lines[2])
	if err != nil {
		return tlog.Tree{}, errors.New("the checkpoint's root is malformed")
	}
	t := tlog.Tree{N: n, Hash: root}
	if text+"\n" != checkpointText(lines[0], t) {
		return tlog.Tree{}, errors.New("the checkpoint is not in canonical form")
	}
	return t, nil
}

// VerifyConsistency reports whether the log of checkpoint older is the
// beginning of the log of checkpoint newer, both signed by public. Who keeps a
// checkpoint somewhere the server can't reach finds out with it that history
// was rewritten. proof is empty if the older log is empty or the two are one.
func VerifyConsistency(older, newer []byte, proof tlog.TreeProof, public string) error {
	o, err := OpenCheckpoint(older, public)
	if err != nil {
		return fmt.Errorf("older checkpoint: %w", err)
	}
	n, err := OpenCheckpoint(newer, public)
	if err != nil {
		return fmt.Errorf("newer checkpoint: %w", err)
	}
	return Grown(o, n, proof)
}

// Grown reports whether the log of tree o is the beginning of that of tree n.
// That either was signed is for the caller to know.
func Grown(o, n tlog.Tree, proof tlog.TreeProof) error {
	switch {
	case o.N > n.N:
		return fmt.Errorf("the log has shrunk from %d to %d events", o.N, n.N)
	case o.N == n.N && o.Hash != n.Hash:
		return fmt.Errorf("there are two logs of %d events: one was forked", o.N)
	case o.N == n.N || o.N == 0:
		if len(proof) != 0 {
			return errors.New("the proof should be empty")
		}
		return nil
	}
	if err := tlog.CheckTree(proof, n.N, n.Hash, o.N, o.Hash); err != nil {
		return fmt.Errorf("the log was forked: that of %d events does not begin with that of %d: %w", n.N, o.N, err)
	}
	return nil
}

// maxCheckpoint bounds a checkpoint: an origin, two lines and a signature.
const maxCheckpoint = 4096

func checkpointText(origin string, t tlog.Tree) string {
	return fmt.Sprintf("%s\n%d\n%s\n", origin, t.N, t.Hash)
}

// checkOrigin refuses what note refuses, and what would not fit a checkpoint.
func checkOrigin(origin string) error {
	if origin == "" || len(origin) > 255 || strings.ContainsFunc(origin, func(r rune) bool {
		return r <= ' ' || r > '~' || r == '+'
	}) {
		return fmt.Errorf("%q can't be the name of a log: want up to 255 printable ASCII characters, no space or +", origin)
	}
	return nil
}
