package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"strings"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/server"
	"github.com/enclave-run/enclave/internal/statedir"
)

// connect returns the control plane to drive: the one that ENCLAVE_BASE_URL
// names; else the one that serves the state directory, which is started in the
// background if there is none.
func (p *program) connect(ctx context.Context) (*server.Link, error) {
	if p.opts.remote() {
		return &server.Link{Client: p.remoteClient(), Close: func() {}}, nil
	}
	s, err := statedir.Open(p.opts.State)
	if err != nil {
		return nil, err
	}
	k, err := server.Hold(ctx, s)
	if server.IsAbsent(err) {
		k, err = server.Start(ctx, s, p.background(s))
	}
	if err != nil {
		return nil, err
	}
	if b := p.opts.Backend; b != autoBackend && b != k.About.Backend {
		k.Close()
		return nil, fmt.Errorf("the control plane on %s (process %d) runs %s, not %s: wait until it has ended or choose another directory with --state", s.Path, k.About.PID, k.About.Backend, b)
	}
	return k, nil
}

// background is how the control plane behind run is started, with the options of
// this run.
func (p *program) background(s *statedir.Dir) server.Background {
	argv := []string{programName, "serve", "--embedded", "--state", s.Path, "--backend", p.opts.Backend}
	return server.Background{Argv: append(argv, programArguments(p.opts.Programs)...), Env: p.environ()}
}

func (p *program) remoteClient() *enclave.Client {
	c := &enclave.Client{
		BaseURL: strings.TrimRight(p.opts.BaseURL, "/"), APIKey: p.opts.APIKey, Token: p.opts.Token,
		TLSFingerprint: p.opts.Fingerprint,
	}
	if p.opts.CAFile != "" {
		roots, err := readRoots(p.opts.CAFile)
		if err != nil { // it was there when the options were validated; now nobody is trusted
			roots = x509.NewCertPool()
		}
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
		c.HTTPClient = &http.Client{Transport: t}
	}
	return c
}
