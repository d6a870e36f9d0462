package main

import (
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/enclave-run/enclave/internal/backend/all"
	"github.com/enclave-run/enclave/internal/statedir"
)

// options is everything that a flag or an environment variable can set for
// serve or for more than one command. Nothing is opened before validate has accepted it.
type options struct {
	State   string // --state, ENCLAVE_STATE
	Backend string // --backend, ENCLAVE_BACKEND

	// Programs are those of others that backends run on: --docker-host, --qemu,
	// --firecracker-bin and --jailer-bin, and a variable for each.
	Programs all.Options

	Serve serveOptions // of serve alone, and of the control plane behind run

	// BaseURL names a control plane to drive instead of one on this host. It and
	// its credentials come from the environment only: a key in an argument list
	// is a key in every process listing.
	BaseURL string // ENCLAVE_BASE_URL
	APIKey  string // ENCLAVE_API_KEY
	Token   string // ENCLAVE_TOKEN

	// What its certificate is verified by: one of these, or else the host's
	// certificate authorities.
	Fingerprint string // ENCLAVE_TLS_FINGERPRINT
	CAFile      string // ENCLAVE_CA_FILE
}

const (
	defaultState  = "/var/lib/enclave"
	defaultListen = "127.0.0.1:8090"
)

// defaults returns the options before any flag was read.
func defaults(env func(string) string) options {
	or := func(name, def string) string {
		if v := env(name); v != "" {
			return v
		}
		return def
	}
	return options{
		State:    or("ENCLAVE_STATE", defaultState),
		Backend:  or("ENCLAVE_BACKEND", autoBackend),
		Serve:    serveDefaults(env),
		Programs: programDefaults(env),
		BaseURL:  env("ENCLAVE_BASE_URL"),
		APIKey:   env("ENCLAVE_API_KEY"),
		Token:    env("ENCLAVE_TOKEN"),

		Fingerprint: env("ENCLAVE_TLS_FINGERPRINT"),
		CAFile:      env("ENCLAVE_CA_FILE"),
	}
}

// validate refuses what can't work, in words, and makes the state path
// absolute.
func (o *options) validate() error {
	if strings.TrimSpace(o.State) == "" {
		return errors.New("the state directory is empty: set --state DIR or ENCLAVE_STATE")
	}
	abs, err := filepath.Abs(o.State)
	if err != nil {
		return fmt.Errorf("state directory %q: %w", o.State, err)
	}
	o.State = abs
	if err := statedir.CheckPath(abs); err != nil {
		return err
	}
	if o.Backend != autoBackend {
		k, err := all.Named(o.Backend)
		if err != nil {
			return fmt.Errorf("backend %q is not one of %s", o.Backend, strings.Join(backendNames(), ", "))
		}
		if err := k.Check(o.Programs); err != nil {
			return err
		}
	}
	if o.BaseURL != "" {
		u, err := url.Parse(o.BaseURL)
		if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
			return fmt.Errorf("ENCLAVE_BASE_URL %q is not a URL such as http://%s", o.BaseURL, defaultListen)
		}
	}
	return o.validateTrust()
}

// validateTrust refuses what a remote control plane can't be verified by.
func (o *options) validateTrust() error {
	if !o.remote() || o.Fingerprint == "" && o.CAFile == "" {
		return nil
	}
	switch pin, err := hex.DecodeString(strings.ReplaceAll(o.Fingerprint, ":", "")); {
	case !strings.HasPrefix(o.BaseURL, "https://"):
		return fmt.Errorf("ENCLAVE_BASE_URL %q is not https, and ENCLAVE_TLS_FINGERPRINT or ENCLAVE_CA_FILE is set: nothing would be verified", o.BaseURL)
	case o.Fingerprint != "" && o.CAFile != "":
		return errors.New("ENCLAVE_TLS_FINGERPRINT and ENCLAVE_CA_FILE exclude each other: unset one")
	case o.Fingerprint != "" && (err != nil || len(pin) != 32):
		return errors.New("ENCLAVE_TLS_FINGERPRINT is not 64 hex digits: `enclave serve` prints it when it starts")
	case o.CAFile != "":
		_, err := readRoots(o.CAFile)
		return err
	}
	return nil
}

// readRoots reads the certificate authorities in a file.
func readRoots(path string) (*x509.CertPool, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("ENCLAVE_CA_FILE: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(raw) {
		return nil, fmt.Errorf("ENCLAVE_CA_FILE %s has no certificate in PEM", path)
	}
	return pool, nil
}

// remote reports whether another control plane than this host's is driven.
func (o *options) remote() bool { return o.BaseURL != "" }
