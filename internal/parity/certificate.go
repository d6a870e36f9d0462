package parity

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/enclave-run/enclave/internal/audit"
)

// A Certificate says that the same requests had one verdict on several backends,
// with everything that shows it: the requests, and each session's record as the
// control plane's log proves it. Encode and Open give and take its file.
type Certificate struct {
	Version int       `json:"version"` // CertificateVersion
	Enclave string    `json:"enclave"` // version of the program that made it
	Time    time.Time `json:"time"`    // UTC, when the last session had ended
	Host    Host      `json:"host"`    // on which the driver ran, and the control planes that it booted
	Mode    string    `json:"mode"`    // "boot:multi" or "real:multi"

	Backends   []Backend     `json:"backends"`
	Exceptions []Exception   `json:"exceptions"` // without which the records would differ
	Workloads  []Certificand `json:"workloads"`
}

// CertificateVersion is the only version of a Certificate there is.
const CertificateVersion = 1

// Modes of a Certificate.
const (
	Booted = "boot:multi" // the driver booted every control plane
	Remote = "real:multi" // somebody else runs them
)

// A Host is the machine of the driver.
type Host struct {
	Kernel string `json:"kernel"` // its release
	Arch   string `json:"arch"`   // as Go names it
}

// ThisHost is the machine of this process.
func ThisHost() (Host, error) {
	kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return Host{}, fmt.Errorf("read the kernel's release: %w", err)
	}
	return Host{Kernel: strings.TrimSpace(string(kernel)), Arch: runtime.GOARCH}, nil
}

// A Backend is one control plane.
type Backend struct {
	Label   string `json:"label"` // unique
	BaseURL string `json:"baseUrl"`
	// TLSFingerprint is the SHA-256, in hex, of the certificate that the control plane
	// had to have; left out if none was pinned.
	TLSFingerprint string `json:"tlsFingerprint,omitempty"`
	Kind           string `json:"kind"`
	Isolation      string `json:"isolation"`
	Image          string `json:"image"` // manifest digest
	// Versions are those of what isolates, by its name: "runsc", "docker", ... A
	// remote control plane tells none.
	Versions map[string]string `json:"versions"`
	// LogKey verifies the records. A workload with a peer runs on a control plane
	// of its own, and PeerLogKey verifies that one's; it is "" if there was none.
	LogKey     string `json:"logKey"`
	PeerLogKey string `json:"peerLogKey"`
}

// A Certificand is one workload and what it came to everywhere.
type Certificand struct {
	Name string `json:"name"`
	Asks string `json:"asks"`
	// NotRun is why it was not run; only one with a peer may say so. The fields
	// that follow are empty then.
	NotRun        string    `json:"notRun"`
	Request       string    `json:"request"`       // the bytes that were sent
	RequestSHA256 string    `json:"requestSha256"` // of these, in hex
	Verdict       *Verdict  `json:"verdict"`       // on every backend
	EventTypes    []string  `json:"eventTypes"`    // in their order, on every backend
	DataSHA256    string    `json:"dataSha256"`    // of the events' data without what may differ, on every backend
	Sessions      []Session `json:"sessions"`      // in the order of the backends
}

// A Session is one run of a workload.
type Session struct {
	Backend string  `json:"backend"` // its label
	ID      string  `json:"id"`
	Verdict Verdict `json:"verdict"`
	// LastHash is the hash of its last event, and through it of all.
	LastHash string `json:"lastHash"`
	LogSize  int64  `json:"logSize"` // of the log that proves the record
	LogRoot  string `json:"logRoot"` // base64
	// Record is the session's exported record: an audit bundle.
	Record json.RawMessage `json:"record"`
}

// certificateFile is a Certificate as its file has it.
type certificateFile struct {
	Certificate json.RawMessage `json:"certificate"`
	Signature   string          `json:"signature"` // audit.Signer.Certify of the SHA-256 of the bytes of certificate, without white space
}

// MaxCertificate is the size in bytes above which a certificate is refused
// unread.
const MaxCertificate = 64 << 20

// Encode returns the one byte form of c, signed: JSON with an indentation of two
// spaces, and a newline.
func (c Certificate) Encode(s *audit.Signer) ([]byte, error) {
	body, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode a parity certificate: %w", err)
	}
	signed, err := s.Certify(sha256.Sum256(body))
	if err != nil {
		return nil, err
	}
	return certificateFile{body, string(signed)}.encode()
}

func (f certificateFile) encode() ([]byte, error) {
	raw, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode a parity certificate: %w", err)
	}
	return append(raw, '\n'), nil
}

// Open returns the certificate in a file, if key signed it. It accepts the bytes
// that Encode makes and no others: every byte of the file counts. What the
// certificate says is for Check to judge.
func Open(file []byte, key string) (Certificate, error) {
	if len(file) > MaxCertificate {
		return Certificate{}, fmt.Errorf("the certificate is larger than %d bytes", MaxCertificate)
	}
	var f certificateFile
	if err := audit.Strict(file, &f); err != nil {
		return Certificate{}, fmt.Errorf("parse certificate: %w", err)
	}
	again, err := f.encode()
	if err != nil {
		return Certificate{}, err
	}
	if !bytes.Equal(again, file) {
		return Certificate{}, errors.New("parse certificate: not in canonical form")
	}
	var body bytes.Buffer
	if err := json.Compact(&body, f.Certificate); err != nil {
		return Certificate{}, fmt.Errorf("parse certificate: %w", err)
	}
	sum, err := audit.OpenCertificate([]byte(f.Signature), key)
	if err != nil {
		return Certificate{}, err
	}
	if sum != sha256.Sum256(body.Bytes()) {
		return Certificate{}, errors.New("the signature is of another certificate: this one was changed")
	}
	var c Certificate
	if err := audit.Strict(body.Bytes(), &c); err != nil {
		return Certificate{}, fmt.Errorf("parse certificate: %w", err)
	}
	// Whoever signs it may write it so that two programs read two things in it, by a
	// field that is there twice or is spelt in another case.
	if written, err := json.Marshal(c); err != nil || !bytes.Equal(written, body.Bytes()) {
		return Certificate{}, errors.Join(errors.New("parse certificate: what is signed is not in canonical form"), err)
	}
	if c.Version != CertificateVersion {
		return Certificate{}, fmt.Errorf("certificate version %d is unknown", c.Version)
	}
	return c, nil
}
