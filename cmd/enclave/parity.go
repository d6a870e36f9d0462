package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/enclave-run/enclave/cmd/enclave/demo"
	"github.com/enclave-run/enclave/internal/parity"
	"github.com/enclave-run/enclave/internal/server"
	"github.com/enclave-run/enclave/internal/statedir"
	"github.com/enclave-run/enclave/internal/ui"
	"github.com/enclave-run/enclave/internal/verify"
	"github.com/spf13/cobra"
)

func (p *program) parityCommand() *cobra.Command {
	var evidence string
	var logKeys, only []string
	var asJSON bool
	c := &cobra.Command{
		Use:   "parity",
		Short: "Certify that the same requests have one verdict on every backend",
		Long: `Parity sends the same bytes to every backend: clean and hostile workloads, each
limit, allowed and refused egress, odd ends. It compares what each recorded, and
writes a certificate that anyone can check offline with the key of this host's
log: evidence/parity-certificate.json, and .md for people. It exits 1, and leaves
no certificate, unless every verdict is the one it must be, and the same on all.

Every real backend of this host is booted, on a state directory of its own. Or
ENCLAVE_PARITY_BASE_URLS (label=url,label=url) names control planes that run
already, with keys in ENCLAVE_PARITY_API_KEYS (label=key,...) and fingerprints of
their certificates in ENCLAVE_PARITY_TLS_FINGERPRINTS (label=sha256,...), which
the certificate names; the key of each one's log must then be given with --log-key, and come from its machine.`,
		Example: `  sudo enclave parity
  sudo enclave parity --only limit-pids --only limit-memory
  sudo enclave audit key > log.vkey
  enclave parity verify evidence/parity-certificate.json --key log.vkey
  ENCLAVE_PARITY_BASE_URLS=a=http://10.0.0.1:8090,b=http://10.0.0.2:8090 \
    enclave parity --log-key a=a.vkey --log-key b=b.vkey`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.certify(cmd.Context(), evidence, logKeys, only, asJSON)
		},
	}
	c.Flags().StringVar(&evidence, "evidence", "evidence", "`DIR`ectory for the certificate")
	c.Flags().StringArrayVar(&logKeys, "log-key", nil, "`LABEL=KEY` of a remote control plane's log, or a file with it; may be repeated (ENCLAVE_PARITY_LOG_KEYS, with commas)")
	c.Flags().StringArrayVar(&only, "only", nil, "run this `WORKLOAD` and certify nothing; may be repeated")
	c.Flags().BoolVar(&asJSON, "json", false, "print as JSON, and what is shown on stderr")
	var names []string
	for _, w := range parity.Workloads() {
		names = append(names, cobra.CompletionWithDesc(w.Name, w.Asks))
	}
	_ = c.RegisterFlagCompletionFunc("only", completeWords(names...)) // fails for a flag that is not there
	c.AddCommand(p.parityVerify())
	return c
}

// certify makes a certificate.
func (p *program) certify(ctx context.Context, evidence string, logKeys, only []string, asJSON bool) error {
	switch booted := p.env("ENCLAVE_PARITY_BASE_URLS") == ""; {
	case booted && p.opts.remote():
		return errors.New("a certificate takes two control planes: name them in ENCLAVE_PARITY_BASE_URLS (label=url,label=url), or unset ENCLAVE_BASE_URL to boot this host's own")
	case booted && p.opts.Backend != autoBackend:
		return fmt.Errorf("a certificate takes every backend of this host: leave out --backend %s, and unset ENCLAVE_BACKEND", p.opts.Backend)
	case booted && os.Geteuid() != 0:
		return errors.New("a certificate is of real backends, which need root: sudo enclave parity, or name control planes in ENCLAVE_PARITY_BASE_URLS")
	}
	if err := demo.CheckWorkloads(only); err != nil {
		return err
	}
	keys, err := p.logKeys(logKeys)
	if err != nil {
		return err
	}
	// The certificate is of the log that this host goes on with: those of the
	// control planes that are booted for it are gone when it is read.
	s, err := statedir.Open(p.opts.State)
	if err != nil {
		return err
	}
	signer, err := server.Certifier(ctx, s, p.now)
	if err != nil {
		return err
	}
	host, err := parity.ThisHost()
	if err != nil {
		return err
	}
	n := demo.Notary{Version: version, Signer: signer, LogKeys: keys, Only: only, Host: host}
	return p.demo(ctx, demoOptions{evidence: evidence}, func(ctx context.Context, c demo.Config) error {
		if asJSON {
			c.Out, c.Color = p.err, false
		}
		out, err := demo.Certify(ctx, c, n)
		if asJSON {
			var failed *demo.Failed
			if err != nil && !errors.As(err, &failed) {
				return err
			}
			return errors.Join(ui.PrintJSON(p.out, out), err)
		}
		if err == nil && out.Certificate != "" {
			_, err = fmt.Fprintf(p.out, "signed with the key %s\ncheck it with: enclave parity verify %s --key KEY\n", out.Key, ui.Visible(out.Certificate))
		}
		return err
	}, func(c *demo.Config) error { // before a minute in which the image is built
		return errors.Join(p.parityTargets(c), demo.CheckTargets(*c))
	})
}

// logKeys reads LABEL=KEY, of flags or else of the environment. A KEY may be a
// file.
func (p *program) logKeys(flags []string) (map[string]string, error) {
	name, list := "--log-key", strings.Join(flags, ",")
	if list == "" {
		name, list = "ENCLAVE_PARITY_LOG_KEYS", p.env("ENCLAVE_PARITY_LOG_KEYS")
	}
	pairs, err := demo.Labelled(name, list)
	if err != nil {
		return nil, err
	}
	keys := map[string]string{}
	for _, kv := range pairs {
		if keys[kv[0]], err = verify.ReadKey(kv[1]); err != nil {
			return nil, fmt.Errorf("%s of %s: %w", name, kv[0], err)
		}
	}
	return keys, nil
}

func (p *program) parityVerify() *cobra.Command {
	var key string
	var logKeys []string
	var asJSON bool
	c := &cobra.Command{
		Use:   "verify FILE",
		Short: "Check a parity certificate against the key of the log that signed it",
		Long: `Verify checks a certificate of parity offline: no server, no database. The key
must come from where you trust it, not from the file: ` + "`enclave audit key`" + ` prints
it on the host that made the certificate. A key that has taken its place since is
another: keep the one of that time.

The requests, every session's record as its control plane's log proves it, the
verdicts and their comparison are all computed again, by this program's own list
of workloads and exceptions. It exits 1 if anything differs, or is missing.`,
		Example: `  enclave parity verify evidence/parity-certificate.json --key log.vkey
  enclave parity verify certificate.json --key log.vkey --log-key a=a.vkey --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			vkey, err := verify.ReadKey(key)
			if err != nil {
				return err
			}
			pinned, err := p.logKeys(logKeys)
			if err != nil {
				return err
			}
			raw, err := verify.ReadCertificate(args[0])
			if err != nil {
				return err
			}
			cert, properties := verify.Certificate(raw, vkey, pinned)
			if err := ui.ShowCertificate(p.out, cert, properties, asJSON); err != nil || verify.Holds(properties) {
				return err
			}
			return errors.New("the certificate does not verify")
		},
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
			return []cobra.Completion{"json"}, cobra.ShellCompDirectiveFilterFileExt
		},
	}
	c.Flags().StringVar(&key, "key", "", "the public key of the log that signed it, or a `FILE` with it")
	_ = c.MarkFlagRequired("key")
	c.Flags().StringArrayVar(&logKeys, "log-key", nil, "`LABEL=KEY` that a backend's log must have, or a file with it; may be repeated (ENCLAVE_PARITY_LOG_KEYS, with commas)")
	c.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return c
}
