// Package demo holds the two demos that double as regression gates: hostile
// workloads that must be contained, and one workload whose verdict must be the
// same on every backend; and the run that certifies that of a list of workloads.
// It judges only by what a control plane's public API
// and the host show, and counts nothing as passed that did not run.
package demo

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/control"
	"github.com/enclave-run/enclave/internal/egress"
	"github.com/enclave-run/enclave/internal/secret"
)

// Config is what a demo is given. All fields but Remotes, Absent, JSON and Color are required.
type Config struct {
	Out, Err io.Writer
	Color    bool
	JSON     io.Writer // gets the report too; nil is nobody
	Evidence string    // directory for the reports
	Temp     string    // directory of this host in which a canary can be planted

	// Remotes are control planes to drive; without any, the demo boots its own.
	Remotes []Remote
	// Mode names the kind of Remotes in backend-parity.
	Mode string
	// Boot starts a control plane of the demo's own.
	Boot func(context.Context, Boot) (*Plane, error)
	// Backends are the backends to boot: one for adversarial, every real one of
	// this host for backend-parity.
	Backends []string
	// Absent are the real backends that backend-parity leaves out: the report says so.
	Absent []Absent
	Now    func() time.Time
}

// An Absent is a backend that is not compared, and why, in words.
type Absent struct {
	Backend string `json:"backend"`
	Reason  string `json:"reason"`
}

// A Remote is a control plane that somebody else runs.
type Remote struct {
	Label   string
	BaseURL string
	APIKey  string
	Token   string

	// How its certificate is verified: Fingerprint is the SHA-256, in hex, of the only
	// one that it may have; else Roots are the authorities, or, if nil, the host's.
	Fingerprint string
	Roots       *x509.CertPool
}

// transport leads to r and to nobody who pretends to be it.
func (r Remote) transport() http.RoundTripper {
	switch {
	case r.Fingerprint != "":
		return enclave.PinnedTransport(r.Fingerprint)
	case r.Roots != nil:
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.TLSClientConfig = &tls.Config{RootCAs: r.Roots, MinVersion: tls.VersionTLS12}
		return t
	}
	return http.DefaultTransport
}

// Boot says what kind of control plane to start.
type Boot struct {
	Backend string
	// Gateway and Table replace the gateway process and the table of public
	// addresses. Only a positive control sets them; nothing but a constructor
	// can.
	Gateway control.Gateway
	Table   *egress.Table
	Places  int // sessions that run, and that wait, at once; 0 is as usual
}

// A Plane is a control plane that a demo drives.
type Plane struct {
	Label   string
	BaseURL string
	// Fingerprint is the SHA-256, in hex, of the certificate that it must have; "" if
	// that is not pinned.
	Fingerprint string
	Client      *enclave.Client
	// Inside is what only the process that runs the control plane has; nil for
	// a remote one.
	Inside *Inside
	// Close ends what Boot started and removes every trace of it.
	Close func(context.Context) error

	credential string
	transport  http.RoundTripper
}

// Inside is what a demo reaches of a control plane that it booted.
type Inside struct {
	Vault  *secret.Vault // of the process that serves
	Log    func() []byte // all that the server has logged
	Rootfs string        // the unpacked image, or "" if there is none
	LogKey string        // the public key of its log
	// Instance marks every sandbox and control group of it.
	Instance string
	// Versions are those of what isolates, by its name.
	Versions map[string]string
}

// Modelled is the backend that executes nothing.
const Modelled = "simulator"

// NewPlane returns the Plane that r is. Its caller sets Inside and Close if it booted
// it.
func NewPlane(r Remote) *Plane {
	t := r.transport()
	return &Plane{
		Label: r.Label, BaseURL: r.BaseURL, Fingerprint: r.Fingerprint, credential: cmp.Or(r.APIKey, r.Token), transport: t,
		Client: &enclave.Client{BaseURL: r.BaseURL, APIKey: r.APIKey, Token: r.Token, HTTPClient: &http.Client{Transport: t}},
		Close:  func(context.Context) error { return nil },
	}
}

// maxSurface bounds what is read of one answer.
const maxSurface = 64 << 20

// fetch returns an answer as it came, whatever its status.
func (p *Plane) fetch(ctx context.Context, method, path, body string, authorized bool) ([]byte, error) {
	r, err := http.NewRequestWithContext(ctx, method, strings.TrimRight(p.BaseURL, "/")+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	if authorized && p.credential != "" {
		r.Header.Set("Authorization", "Bearer "+p.credential)
	}
	resp, err := p.transport.RoundTrip(r) // never follows a redirect with a credential
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxSurface))
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	head := resp.Status + "\n"
	for k, v := range resp.Header {
		head += k + ": " + strings.Join(v, ", ") + "\n"
	}
	return append([]byte(head), raw...), nil
}

// open returns the control plane to drive: the first of c's remotes, or one of
// the demo's own.
func (c *Config) open(ctx context.Context) (*Plane, error) {
	if len(c.Remotes) > 0 {
		r := c.Remotes[0]
		return NewPlane(r), nil
	}
	if len(c.Backends) == 0 {
		return nil, errors.New("no backend to boot")
	}
	return c.Boot(ctx, Boot{Backend: c.Backends[0]})
}

// weakness returns what must be said of an isolation wherever it is shown, if it
// is no boundary to rely on.
func weakness(isolation string) string {
	switch isolation {
	case "shared_kernel":
		return "the host's own kernel: not a security boundary"
	case "emulated":
		return "software emulation: for development and tests"
	}
	return ""
}

// mode returns how a control plane contains, in the words of the reports.
func mode(h enclave.Health) string {
	if h.Backend == Modelled {
		return "modelled (no code executed)"
	}
	if weak := weakness(h.Isolation); weak != "" {
		return "kernel containment (" + weak + ")"
	}
	return "kernel containment"
}

// random returns 16 random bytes in hex.
func random() string {
	var b [16]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}
