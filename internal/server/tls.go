package server

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/enclave-run/enclave/internal/safepath"
	"github.com/enclave-run/enclave/internal/statedir"
)

// A Certificate is what the server proves itself with. It is read again when
// its files change; what can't be read leaves the one there is.
type Certificate struct {
	cert, key string // paths
	now       func() time.Time
	log       *slog.Logger

	mu     sync.Mutex // guards the rest
	loaded *tls.Certificate
	seen   string    // the files' state when they were loaded
	looked time.Time // when they were last looked at
}

// OpenCertificate returns the certificate whose chain and key are in files.
func OpenCertificate(cert, key string, now func() time.Time, log *slog.Logger) (*Certificate, error) {
	c := &Certificate{cert: cert, key: key, now: now, log: log}
	if err := c.load(); err != nil {
		return nil, fmt.Errorf("TLS certificate: %w", err)
	}
	return c, nil
}

// Listener speaks TLS on l: 1.2 or newer, and HTTP/1.1 in it.
func (c *Certificate) Listener(l net.Listener) net.Listener {
	return tls.NewListener(l, &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.current(), nil },
	})
}

// Fingerprint returns the SHA-256 of the certificate, in hex.
func (c *Certificate) Fingerprint() string {
	sum := sha256.Sum256(c.current().Certificate[0])
	return hex.EncodeToString(sum[:])
}

// current returns the certificate, after a look at its files if the last is a
// second ago.
func (c *Certificate) current() *tls.Certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := c.now(); now.Sub(c.looked) >= time.Second || now.Before(c.looked) {
		c.looked = now
		if err := c.reload(); err != nil {
			c.log.Warn("the new TLS certificate can't be used; the old one stays", "err", err)
		}
	}
	return c.loaded
}

func (c *Certificate) load() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reload()
}

// reload loads the files if they are not as they were. The caller holds mu.
func (c *Certificate) reload() error {
	var state strings.Builder
	for _, path := range []string{c.cert, c.key} {
		// Whoever could exchange them could be the server.
		real, err := filepath.Abs(path)
		if err == nil {
			real, err = safepath.File(real)
		}
		if err != nil {
			return err
		}
		info, err := os.Stat(real)
		if err != nil {
			return err
		}
		fmt.Fprintln(&state, info.ModTime().UnixNano(), info.Size())
	}
	if state.String() == c.seen {
		return nil
	}
	c.seen = state.String() // a bad one is complained of once
	pair, err := tls.LoadX509KeyPair(c.cert, c.key)
	if err != nil {
		return err
	}
	c.loaded = &pair
	return nil
}

// OwnCertificate returns the certificate that the server makes for itself, for the
// address that it listens on and some names. The caller holds the lock of s.
func OwnCertificate(s *statedir.Dir, listen string, hosts []string, now func() time.Time, log *slog.Logger) (*Certificate, error) {
	path := s.File("db", "tls.pem")
	if err := ensureSelfSigned(path, listen, hosts, now()); err != nil {
		return nil, fmt.Errorf("the server's own certificate: %w", err)
	}
	return OpenCertificate(path, path, now, log)
}

// ownLife is how long the server's own certificate is good.
const ownLife = 5 * 365 * 24 * time.Hour

// ensureSelfSigned makes a certificate and its key at path, unless there is one
// that has not expired: clients have its fingerprint.
func ensureSelfSigned(path, listen string, hosts []string, now time.Time) error {
	if old, err := tls.LoadX509KeyPair(path, path); err == nil && now.Before(old.Leaf.NotAfter) {
		return nil
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return err
	}
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "Enclave"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(ownLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	names := append([]string{"localhost", "127.0.0.1", "::1"}, hosts...)
	if host, _, err := net.SplitHostPort(listen); err == nil {
		names = append(names, host)
	}
	if host, err := os.Hostname(); err == nil {
		names = append(names, host)
	}
	slices.Sort(names)
	for _, n := range slices.Compact(names) {
		if ip := net.ParseIP(n); ip == nil && n != "" {
			t.DNSNames = append(t.DNSNames, n)
		} else if ip != nil && !ip.IsUnspecified() {
			t.IPAddresses = append(t.IPAddresses, ip)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	text = append(text, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})...)
	return statedir.WriteFile(path, text, 0o600)
}
