package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/failpoint"
)

// auditKey is the private key of the log, in db.
const auditKey = "audit.key"

// makeSignerKey makes the key of this state directory's log. The public half is
// kept beside it, for everyone to read. The caller holds the lock.
func makeSignerKey(s *stateDir) ([]byte, error) {
	private, public, err := audit.GenerateKey(rand.Reader, "enclave.local/"+s.instance)
	if err != nil {
		return nil, err
	}
	// The public key comes first: a log that is signed can always be verified.
	if err := writeFile(s.file("audit.vkey"), []byte(public+"\n"), 0o644); err != nil {
		return nil, err
	}
	if err := failpoint.Hit("signer.make.public"); err != nil {
		return nil, err
	}
	if err := writeFile(s.file("db", auditKey), private, 0o600); err != nil {
		return nil, err
	}
	return private, failpoint.Hit("signer.make.private")
}

// publicKey returns the key that verifies what s signs.
func publicKey(s *stateDir) (string, error) {
	raw, err := readSmall(s.file("audit.vkey"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%s has no audit log yet: run a session first", s.path)
	}
	if err != nil {
		return "", fmt.Errorf("read the audit key: %w", err)
	}
	return strings.TrimSpace(string(raw)), nil
}

// writeFile writes a new file as a whole or not at all, and durably.
func writeFile(path string, content []byte, mode fs.FileMode) error {
	tmp := path + ".new"
	// A crash left it, or another user put it there, such as a link: a witness may
	// remember what it saw in anybody's directory.
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	defer os.Remove(tmp)
	_, err = f.Write(content)
	if err := errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
