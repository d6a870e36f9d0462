package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/enclave-run/enclave/internal/auth"
	"github.com/enclave-run/enclave/internal/server"
	"github.com/enclave-run/enclave/internal/statedir"
	"github.com/spf13/cobra"
)

// accessOptions is how clients reach a control plane and who they may be.
type accessOptions struct {
	Hosts         []string // --host, ENCLAVE_HOSTS
	TLS           string   // --tls, ENCLAVE_TLS: "" or selfSigned
	TLSCert       string   // --tls-cert, ENCLAVE_TLS_CERT
	TLSKey        string   // --tls-key, ENCLAVE_TLS_KEY
	InsecurePlain bool     // --insecure-plain-http, ENCLAVE_INSECURE_PLAIN_HTTP
	RootKeyFile   string   // --root-key-file, ENCLAVE_ROOT_KEY_FILE
	OIDC          []string // --oidc, ENCLAVE_OIDC
	OIDCAllow     []string // --oidc-allow, ENCLAVE_OIDC_ALLOW
}

// selfSigned is the certificate that the server makes for itself.
const selfSigned = "self-signed"

func accessDefaults(or func(name, def string) string) accessOptions {
	list := func(name, sep string) []string {
		return strings.FieldsFunc(or(name, ""), func(r rune) bool { return strings.ContainsRune(sep, r) })
	}
	return accessOptions{
		Hosts: list("ENCLAVE_HOSTS", ", "), TLS: or("ENCLAVE_TLS", ""),
		TLSCert: or("ENCLAVE_TLS_CERT", ""), TLSKey: or("ENCLAVE_TLS_KEY", ""),
		InsecurePlain: or("ENCLAVE_INSECURE_PLAIN_HTTP", "") == "true",
		RootKeyFile:   or("ENCLAVE_ROOT_KEY_FILE", ""),
		OIDC:          list("ENCLAVE_OIDC", " \n"), OIDCAllow: list("ENCLAVE_OIDC_ALLOW", ", "),
	}
}

func (o *accessOptions) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringSliceVar(&o.Hosts, "host", o.Hosts, "`NAME` that the server answers to on a loopback address; repeatable (ENCLAVE_HOSTS, separated by commas)")
	f.StringVar(&o.TLSCert, "tls-cert", o.TLSCert, "`FILE` with the certificate chain, read again when it changes (ENCLAVE_TLS_CERT)")
	f.StringVar(&o.TLSKey, "tls-key", o.TLSKey, "`FILE` with the certificate's private key (ENCLAVE_TLS_KEY)")
	f.StringVar(&o.TLS, "tls", o.TLS, "`self-signed`: with a certificate of the server's own, whose fingerprint is printed (ENCLAVE_TLS)")
	f.BoolVar(&o.InsecurePlain, "insecure-plain-http", o.InsecurePlain, "serve without TLS beyond this host: every machine on the way can read the credentials and everything else (ENCLAVE_INSECURE_PLAIN_HTTP=true)")
	f.StringVar(&o.RootKeyFile, "root-key-file", o.RootKeyFile, "new `FILE` that the first start writes the root key to, instead of printing it (ENCLAVE_ROOT_KEY_FILE)")
	f.StringArrayVar(&o.OIDC, "oidc", o.OIDC, "`ISSUER` of tokens: issuer=URL,audience=NAME,org=NAME[,org=NAME...][,org-claim=CLAIM][,role-claim=CLAIM]; repeatable (ENCLAVE_OIDC, separated by spaces)")
	f.StringSliceVar(&o.OIDCAllow, "oidc-allow", o.OIDCAllow, "private or loopback `CIDR` that an issuer may be in; repeatable (ENCLAVE_OIDC_ALLOW, separated by commas)")
}

// encrypted reports whether the API is served over TLS.
func (o *accessOptions) encrypted() bool { return o.TLS != "" || o.TLSCert != "" }

func (o *accessOptions) validate() error {
	switch {
	case o.TLS != "" && o.TLS != selfSigned:
		return fmt.Errorf("--tls %q is not %s; --tls-cert and --tls-key bring a certificate", o.TLS, selfSigned)
	case (o.TLSCert == "") != (o.TLSKey == ""):
		return errors.New("--tls-cert and --tls-key go together")
	case o.TLS != "" && o.TLSCert != "":
		return errors.New("--tls self-signed and --tls-cert are two certificates: choose one")
	case o.encrypted() && o.InsecurePlain:
		return errors.New("--insecure-plain-http contradicts TLS: leave one out")
	}
	for _, h := range o.Hosts {
		if h == "" || strings.Trim(strings.ToLower(h), "abcdefghijklmnopqrstuvwxyz0123456789.-_") != "" {
			return fmt.Errorf("--host %q is not a name such as enclave.internal, without port or path", h)
		}
	}
	issuers, err := o.issuers()
	if err != nil {
		return err
	}
	if _, err = o.issuerRanges(); err != nil {
		return err
	}
	// What a Verifier refuses is refused before anything is opened.
	_, err = auth.NewVerifier(auth.VerifierConfig{Secret: make([]byte, auth.SecretLen), Now: time.Now, Issuers: issuers, Client: &http.Client{}})
	if err != nil {
		return fmt.Errorf("--oidc: %w", err)
	}
	return nil
}

// issuers parses --oidc.
func (o *accessOptions) issuers() (all []auth.Issuer, err error) {
	for _, text := range o.OIDC {
		i, err := server.ParseIssuer(text)
		if err != nil {
			return nil, fmt.Errorf("--oidc: %w", err)
		}
		all = append(all, i)
	}
	return all, nil
}

// issuerRanges is where issuers may be besides the public internet.
func (o *accessOptions) issuerRanges() ([]netip.Prefix, error) {
	return prefixes("--oidc-allow", o.OIDCAllow)
}

// certificate opens the certificate of o. The caller holds the lock of s.
func (o *accessOptions) certificate(s *statedir.Dir, listen string, now func() time.Time, log *slog.Logger) (*server.Certificate, error) {
	if o.TLS == selfSigned {
		return server.OwnCertificate(s, listen, o.Hosts, now, log)
	}
	return server.OpenCertificate(o.TLSCert, o.TLSKey, now, log)
}

// validateListen refuses to speak plain HTTP to others than this host.
func (o *serveOptions) validateListen() error {
	host, port, err := net.SplitHostPort(o.Listen)
	if err != nil || port == "" {
		return fmt.Errorf("--listen %q is not host:port, such as %s", o.Listen, defaultListen)
	}
	if !loopback(host) && !o.Access.encrypted() && !o.Access.InsecurePlain {
		return fmt.Errorf("--listen %q is not a loopback address, and so needs TLS: add --tls self-signed, or --tls-cert and --tls-key", o.Listen)
	}
	return nil
}

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
