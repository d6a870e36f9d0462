package server

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/failpoint"
	"github.com/enclave-run/enclave/internal/statedir"
)

// AuditKey is the private key of the log, in db.
const AuditKey = "audit.key"

// makeSignerKey makes the key of this state directory's log. The public half is
// kept beside it, for everyone to read. The caller holds the lock.
func makeSignerKey(s *statedir.Dir) ([]byte, error) {
	private, public, err := audit.GenerateKey(rand.Reader, "enclave.local/"+s.Instance)
	if err != nil {
		return nil, err
	}
	// The public key comes first: a log that is signed can always be verified.
	if err := statedir.WriteFile(s.File("audit.vkey"), []byte(public+"\n"), 0o644); err != nil {
		return nil, err
	}
	if err := failpoint.Hit("signer.make.public"); err != nil {
		return nil, err
	}
	if err := statedir.WriteFile(s.File("db", AuditKey), private, 0o600); err != nil {
		return nil, err
	}
	return private, failpoint.Hit("signer.make.private")
}

// PublicKey returns the key that verifies what s signs.
func PublicKey(s *statedir.Dir) (string, error) {
	raw, err := statedir.ReadFile(s.File("audit.vkey"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%s has no audit log yet: run a session first", s.Path)
	}
	if err != nil {
		return "", fmt.Errorf("read the audit key: %w", err)
	}
	return strings.TrimSpace(string(raw)), nil
}
