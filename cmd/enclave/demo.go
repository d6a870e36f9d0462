package main

import (
	"cmp"
	"context"
	"errors"
	"os"

	"github.com/enclave-run/enclave/cmd/enclave/demo"
	"github.com/enclave-run/enclave/internal/backend/all"
	"github.com/enclave-run/enclave/internal/image"
	"github.com/enclave-run/enclave/internal/server"
	"github.com/enclave-run/enclave/internal/statedir"
	"github.com/enclave-run/enclave/internal/ui"
	"github.com/spf13/cobra"
)

func (p *program) demoCommand() *cobra.Command {
	var o demoOptions
	c := &cobra.Command{
		Use:   "demo",
		Short: "Run a demo that is also a regression gate",
		Long: `A demo drives the control plane that ENCLAVE_BASE_URL names, or boots one of its
own, which it removes again. It writes a report and exits 1 if any check fails.`,
		Example: `  sudo enclave demo adversarial
  sudo enclave demo backend-parity --json > parity.json`,
	}
	c.PersistentFlags().BoolVar(&o.json, "json", false, "print the report as JSON, and what is shown on stderr")
	c.PersistentFlags().StringVar(&o.evidence, "evidence", "evidence", "`DIR`ectory for the reports")
	c.AddCommand(&cobra.Command{
		Use:     "adversarial",
		Short:   "Five workloads, four of them hostile, in five sandboxes",
		Example: "  sudo enclave demo adversarial --backend gvisor",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.demo(cmd.Context(), o, demo.Adversarial, p.adversarialTargets)
		},
	}, &cobra.Command{
		Use:   "backend-parity",
		Short: "One workload, one verdict, on every backend",
		Long: `Backend-parity sends one request to several control planes and compares what they
show. ENCLAVE_PARITY_BASE_URLS (label=url,label=url) names them, with keys in
ENCLAVE_PARITY_API_KEYS (label=key,...) and fingerprints of their certificates in
ENCLAVE_PARITY_TLS_FINGERPRINTS (label=sha256,...); else ENCLAVE_BASE_URL names one; else one
is booted for every real backend of this host.`,
		Example: `  sudo enclave demo backend-parity
  ENCLAVE_PARITY_BASE_URLS=a=http://127.0.0.1:8090,b=http://127.0.0.1:8091 enclave demo backend-parity`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.demo(cmd.Context(), o, demo.Parity, p.parityTargets)
		},
	})
	return c
}

// demoOptions are what every demo takes.
type demoOptions struct {
	evidence string // directory for the reports
	json     bool
}

// demo runs a demo against the control planes that targets chooses.
func (p *program) demo(ctx context.Context, o demoOptions, run func(context.Context, demo.Config) error, targets func(*demo.Config) error) error {
	out, color := ui.Styled(p.out, p.env("NO_COLOR") != "")
	c := demo.Config{
		Out: out, Err: p.err, Color: color,
		Evidence: o.evidence, Temp: os.TempDir(), Now: p.now,
	}
	if o.json {
		c.Out, c.Color, c.JSON = p.err, false, p.out
	}
	if err := targets(&c); err != nil {
		return err
	}
	ctx, in := ui.Interruptible(ctx)
	defer in.Stop()
	err := func() error {
		if len(c.Remotes) > 0 {
			return run(ctx, c)
		}
		s, images, err := p.bootable(ctx, c.Backends...)
		if err != nil {
			return err
		}
		c.Boot = func(ctx context.Context, b demo.Boot) (*demo.Plane, error) { return p.bootDemo(ctx, s, images, b) }
		return run(ctx, c)
	}()
	if code := in.Status(); code != 0 {
		return &exit{code, err}
	}
	return err
}

// bootable returns the state directory and images on which bootDemo boots the
// backends: clean of what an earlier demo left, and with the image they need.
func (p *program) bootable(ctx context.Context, backends ...string) (*statedir.Dir, *image.Store, error) {
	s, err := statedir.Open(p.opts.State)
	if err != nil {
		return nil, nil, err
	}
	images, err := image.Open(s.File("images"))
	if err != nil {
		return nil, nil, err
	}
	if err := server.Sweep(ctx, s, p.hostOf(s, nil)); err != nil {
		return nil, nil, err
	}
	for _, name := range backends {
		k, err := all.Named(name)
		if err == nil {
			err = p.ensureImage(ctx, images, k, false)
		}
		if err != nil {
			return nil, nil, err
		}
	}
	return s, images, nil
}

func (p *program) adversarialTargets(c *demo.Config) error {
	if p.opts.remote() {
		r, err := p.remote("")
		c.Remotes = []demo.Remote{r}
		return err
	}
	k, err := p.chooseBackend(context.Background())
	c.Backends = []string{k.Name}
	return err
}

// remote is the control plane that ENCLAVE_BASE_URL names.
func (p *program) remote(label string) (demo.Remote, error) {
	r := demo.Remote{Label: label, BaseURL: p.opts.BaseURL, APIKey: p.opts.APIKey, Token: p.opts.Token}
	var err error
	switch {
	case p.opts.Fingerprint != "":
		r.Fingerprint, err = demo.Fingerprint(p.opts.Fingerprint)
	case p.opts.CAFile != "":
		r.Roots, err = readRoots(p.opts.CAFile)
	}
	return r, err
}

func (p *program) parityTargets(c *demo.Config) (err error) {
	named := func(name string) [2]string { return [2]string{name, p.env(name)} }
	if urls := named("ENCLAVE_PARITY_BASE_URLS"); urls[1] != "" {
		c.Mode = demo.RealMulti
		c.Remotes, err = demo.ParseRemotes(urls, named("ENCLAVE_PARITY_API_KEYS"), named("ENCLAVE_PARITY_TLS_FINGERPRINTS"))
		return err
	}
	if p.opts.remote() {
		r, err := p.remote(cmp.Or(p.env("ENCLAVE_BACKEND"), "backend"))
		c.Mode, c.Remotes = demo.RealSingle, []demo.Remote{r}
		return err
	}
	if p.opts.Backend != autoBackend {
		k, err := p.chooseBackend(context.Background())
		c.Backends = []string{k.Name}
		return err
	}
	if os.Geteuid() == 0 { // without it none runs
		c.Backends, c.Absent = p.realBackends(context.Background())
	}
	if len(c.Backends) == 0 {
		c.Backends = []string{demo.Modelled} // the report says so
	}
	return nil
}

// booter starts control planes on state directories of their own below s, with the
// images of s.
func (p *program) booter(s *statedir.Dir, images *image.Store) server.Booter {
	return server.Booter{Above: s, Host: p.hostOf(s, images), Now: p.now, Version: version, Crash: p.err}
}

// bootDemo starts a control plane that a demo drives.
func (p *program) bootDemo(ctx context.Context, s *statedir.Dir, images *image.Store, b demo.Boot) (_ *demo.Plane, err error) {
	kind, err := all.Named(b.Backend)
	if err != nil {
		return nil, err
	}
	log := &demo.Record{}
	logger, err := newLogger(log)
	if err != nil {
		return nil, err
	}
	booted, err := p.booter(s, images).Boot(ctx, server.Boot{Kind: kind, Logger: logger, Gateway: b.Gateway, Table: b.Table, Places: b.Places})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, booted.Close(context.WithoutCancel(ctx)))
		}
	}()
	p.warnOfEmulation(kind.Name, booted.Isolation)
	inside := &demo.Inside{Vault: booted.Vault, Log: log.Bytes, Instance: booted.State.Instance}
	if inside.LogKey, err = server.PublicKey(booted.State); err != nil {
		return nil, err
	}
	if inside.Versions, err = kind.Versions(ctx, booted.Host); err != nil {
		return nil, err
	}
	if kind.Executes {
		digest, err := images.Resolve(image.Default)
		if err != nil {
			return nil, err
		}
		if inside.Rootfs, err = images.Rootfs(digest); err != nil {
			return nil, err
		}
	}
	plane := demo.NewPlane(demo.Remote{Label: kind.Name, BaseURL: booted.URL, APIKey: booted.Key})
	plane.Inside, plane.Close = inside, booted.Close
	return plane, nil
}
