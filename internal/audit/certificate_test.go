package audit

import (
	"bytes"
	"crypto/sha256"
	"testing"

	"golang.org/x/mod/sumdb/tlog"
)

func TestASignedCertificateIsOpenedByItsKeyAlone(t *testing.T) {
	s, other := newSigner(t, "example.com/log"), newSigner(t, "example.com/log")
	sum := sha256.Sum256([]byte("a body"))
	signed, err := s.Certify(sum)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := OpenCertificate(signed, s.Public()); err != nil || got != sum {
		t.Errorf("opened %x, error %v", got, err)
	}
	if _, err := OpenCertificate(signed, other.Public()); err == nil {
		t.Error("another key opens it")
	}
	for i := range signed {
		for bit := range 8 {
			spoiled := bytes.Clone(signed)
			spoiled[i] ^= 1 << bit
			if _, err := OpenCertificate(spoiled, s.Public()); err == nil {
				t.Fatalf("bit %d of byte %d changed, and nobody says so", bit, i)
			}
		}
	}
	for _, more := range []string{"\n", " ", string(signed)} {
		if _, err := OpenCertificate(append(bytes.Clone(signed), more...), s.Public()); err == nil {
			t.Errorf("%q behind it, and nobody says so", more)
		}
	}
}

// One key signs both: neither may pass for the other.
func TestACertificateIsNoCheckpointNorTheReverse(t *testing.T) {
	s := newSigner(t, "example.com/log")
	signed, err := s.Certify(sha256.Sum256(nil))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenCheckpoint(signed, s.Public()); err == nil {
		t.Error("a certificate is taken for a checkpoint")
	}
	if _, err := ParseCheckpoint(signed); err == nil {
		t.Error("a certificate is read as a checkpoint")
	}
	checkpoint, err := s.Checkpoint(tlog.Tree{N: 1, Hash: sha256.Sum256(nil)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenCertificate(checkpoint, s.Public()); err == nil {
		t.Error("a checkpoint is taken for a certificate")
	}
	// A log can't be named so that its checkpoint begins as a certificate does.
	if err := checkOrigin("enclave parity certificate v1"); err == nil {
		t.Error("a log may have the name of the certificates' domain")
	}
}
