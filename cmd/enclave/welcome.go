package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"

	"github.com/enclave-run/enclave/internal/server"
	"github.com/enclave-run/enclave/internal/store"
)

// A place is where a control plane is reached.
type place struct {
	url         string
	fingerprint string // of its certificate; "" without TLS
	state       string
}

// welcome says where the control plane is, and at the first start how to use
// it. The root key is shown then and never again. If it is lost, or the
// server died between saving and showing it, root on this machine makes another
// over the socket.
func (p *program) welcome(ctx context.Context, st *store.Store, at *place) error {
	fmt.Fprintf(p.err, "enclave serves %s · state %s · process %d\n", at.url, at.state, os.Getpid())
	if at.fingerprint != "" {
		fmt.Fprintf(p.err, "SHA-256 fingerprint of its certificate: %s\n", at.fingerprint)
	}
	file := p.opts.Serve.Access.RootKeyFile
	id, plaintext, err := server.RootKey(ctx, st, p.now(), file)
	if err != nil || plaintext == "" {
		return err
	}
	shown, use := "(shown this once): "+plaintext, plaintext
	if file != "" {
		shown, use = "is in "+file, "$(cat "+file+")"
	}
	pin := ""
	if at.fingerprint != "" {
		pin = " ENCLAVE_TLS_FINGERPRINT=" + at.fingerprint
	}
	_, err = fmt.Fprintf(p.out, `root API key %s
Run the first session:
  export ENCLAVE_BASE_URL=%s ENCLAVE_API_KEY=%s%s
  enclave run -c 'enclave.result(sum(range(10)))'
  enclave session list
`, shown, at.here(), use, pin)
	if err != nil {
		return fmt.Errorf("show the root API key, which is made: %w: start the server again, `enclave key revoke %s --state %s`, and make another with `enclave key create --user root --role owner --state %s`", err, id, at.state, at.state)
	}
	return nil
}

// here returns the URL for who is on this host: an address that stands for all
// of the host's is one to listen on, not one to go to.
func (at *place) here() string {
	u, err := url.Parse(at.url)
	if err != nil {
		return at.url
	}
	if ip, err := netip.ParseAddr(u.Hostname()); err == nil && ip.IsUnspecified() {
		u.Host = net.JoinHostPort("127.0.0.1", u.Port())
	}
	return u.String()
}
