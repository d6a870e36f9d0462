package server

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/enclave-run/enclave/internal/testenv"
)

func TestACertificateThatOthersCanExchangeIsRefused(t *testing.T) {
	testenv.Need(t, "root")
	for name, spoil := range map[string]func(dir, path string) error{
		"is another's":              func(_, path string) error { return os.Chown(path, 1000, 1000) },
		"can be written":            func(_, path string) error { return os.Chmod(path, 0o666) },
		"lies in another's":         func(dir, _ string) error { return os.Chown(dir, 1000, 1000) },
		"lies where all can remove": func(dir, _ string) error { return os.Chmod(dir, 0o777) },
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, "tls.pem")
		if err := ensureSelfSigned(path, "127.0.0.1:1", nil, time.Now()); err != nil {
			t.Fatal(err)
		}
		if err := spoil(dir, path); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenCertificate(path, path, time.Now, slog.New(slog.DiscardHandler)); err == nil {
			t.Errorf("one that %s was taken", name)
		}
	}
}

func TestNewCertificateIsTakenAndABadOneNot(t *testing.T) {
	dir := t.TempDir()
	now := time.Now()
	path := filepath.Join(dir, "tls.pem")
	if err := ensureSelfSigned(path, "127.0.0.1:1", nil, now); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	c, err := OpenCertificate(path, path, func() time.Time { return now }, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	first := c.Fingerprint()
	if err := os.WriteFile(path, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	now = now.Add(time.Second)
	if c.Fingerprint() != first || !strings.Contains(log.String(), "old one stays") {
		t.Errorf("after nonsense: %s", log.String())
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := ensureSelfSigned(path, "127.0.0.1:1", nil, now); err != nil {
		t.Fatal(err)
	}
	now = now.Add(time.Second)
	if c.Fingerprint() == first {
		t.Error("the new certificate is not taken")
	}
	if _, err := OpenCertificate(path+"x", path, time.Now, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a server without its certificate was started")
	}
}
