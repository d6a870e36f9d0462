package audit

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

// certificateDomain begins what is signed of a parity certificate. No checkpoint
// can begin so: the name of a log has no space.
const certificateDomain = "enclave parity certificate v1\n"

// Certify returns a signed note that vouches for a parity certificate whose body
// has the SHA-256 sum: "enclave parity certificate v1", and the sum in hex, each
// on a line. It is signed as a checkpoint is, and can't be taken for one.
func (s *Signer) Certify(sum [sha256.Size]byte) ([]byte, error) {
	b, err := note.Sign(&note.Note{Text: certificateText(sum)}, s.signer)
	if err != nil {
		return nil, fmt.Errorf("sign a parity certificate: %w", err)
	}
	return b, nil
}

// OpenCertificate returns the sum that a certificate's note vouches for, if
// public signed it. It accepts the bytes that Signer.Certify makes and no others.
func OpenCertificate(signed []byte, public string) (sum [sha256.Size]byte, err error) {
	text, _, err := openNote("certificate", signed, public)
	if err != nil {
		return sum, err
	}
	line, ok := strings.CutPrefix(text, certificateDomain)
	raw, err := hex.DecodeString(strings.TrimSuffix(line, "\n"))
	if !ok || err != nil || len(raw) != len(sum) {
		return sum, errors.New("what is signed is no parity certificate")
	}
	copy(sum[:], raw)
	if text != certificateText(sum) {
		return [sha256.Size]byte{}, errors.New("the certificate's note is not in canonical form")
	}
	return sum, nil
}

func certificateText(sum [sha256.Size]byte) string {
	return certificateDomain + hex.EncodeToString(sum[:]) + "\n"
}
