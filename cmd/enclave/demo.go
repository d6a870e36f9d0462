package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/enclave-run/enclave/cmd/enclave/demo"
	"github.com/enclave-run/enclave/internal/backend/all"
	"github.com/enclave-run/enclave/internal/image"
	"github.com/enclave-run/enclave/internal/server"
	"github.com/enclave-run/enclave/internal/statedir"
	"github.com/enclave-run/enclave/internal/ui"
	"github.com/spf13/cobra"
)

func (p *program) demoCommand() *cobra.Command {
	var evidence string
	c := &cobra.Command{
		Use:   "demo",
		Short: "Run a demo that is also a regression gate",
		Long: `A demo drives the control plane that ENCLAVE_BASE_URL names, or boots one of its
own, which it removes again. It writes a report and exits 1 if any check fails.`,
		Example: `  sudo enclave demo adversarial
  sudo enclave demo backend-parity`,
	}
	c.PersistentFlags().StringVar(&evidence, "evidence", "evidence", "`DIR`ectory for the reports")
	c.AddCommand(&cobra.Command{
		Use:     "adversarial",
		Short:   "Five workloads, four of them hostile, in five sandboxes",
		Example: "  sudo enclave demo adversarial --backend gvisor",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.demo(cmd.Context(), evidence, demo.Adversarial, p.adversarialTargets)
		},
	}, &cobra.Command{
		Use:   "backend-parity",
		Short: "One workload, one verdict, on every backend",
		Long: `Backend-parity sends one request to several control planes and compares what they
show. ENCLAVE_PARITY_BASE_URLS (label=url,label=url) names them, with keys in
ENCLAVE_PARITY_API_KEYS (label=key,...); else ENCLAVE_BASE_URL names one; else one
is booted for every real backend of this host.`,
		Example: `  sudo enclave demo backend-parity
  ENCLAVE_PARITY_BASE_URLS=a=http://127.0.0.1:8090,b=http://127.0.0.1:8091 enclave demo backend-parity`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.demo(cmd.Context(), evidence, demo.Parity, p.parityTargets)
		},
	})
	return c
}

// demo runs a demo against the control planes that targets chooses.
func (p *program) demo(ctx context.Context, evidence string, run func(context.Context, demo.Config) error, targets func(*demo.Config) error) error {
	out, color := ui.Styled(p.out, p.env("NO_COLOR") != "")
	c := demo.Config{
		Out: out, Err: p.err, Color: color,
		Evidence: evidence, Temp: os.TempDir(), Now: p.now,
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
		c.Remotes = []demo.Remote{{BaseURL: p.opts.BaseURL, APIKey: p.opts.APIKey, Token: p.opts.Token}}
		return nil
	}
	k, err := p.chooseBackend(context.Background())
	c.Backends = []string{k.Name}
	return err
}

func (p *program) parityTargets(c *demo.Config) error {
	if list := p.env("ENCLAVE_PARITY_BASE_URLS"); list != "" {
		keys, err := labelled("ENCLAVE_PARITY_API_KEYS", p.env("ENCLAVE_PARITY_API_KEYS"))
		if err != nil {
			return err
		}
		c.Mode = demo.RealMulti
		urls, err := labelled("ENCLAVE_PARITY_BASE_URLS", list)
		if err != nil {
			return err
		}
		if len(urls) == 0 {
			return errors.New("ENCLAVE_PARITY_BASE_URLS names no control plane: unset it, or set it to label=url,label=url")
		}
		known := map[string]string{}
		for _, k := range keys {
			known[k[0]] = k[1]
		}
		for _, u := range urls {
			c.Remotes = append(c.Remotes, demo.Remote{Label: u[0], BaseURL: u[1], APIKey: known[u[0]]})
			delete(known, u[0])
		}
		for label := range known {
			return fmt.Errorf("ENCLAVE_PARITY_API_KEYS has a key for %q, which ENCLAVE_PARITY_BASE_URLS does not name", label)
		}
		return nil
	}
	if p.opts.remote() {
		label := p.env("ENCLAVE_BACKEND")
		if label == "" {
			label = "backend"
		}
		c.Mode = demo.RealSingle
		c.Remotes = []demo.Remote{{Label: label, BaseURL: p.opts.BaseURL, APIKey: p.opts.APIKey, Token: p.opts.Token}}
		return nil
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

// labelled reads label=value,label=value in its order. Errors never quote a
// value: it may be a key.
func labelled(name, list string) ([][2]string, error) {
	var all [][2]string
	seen := map[string]bool{}
	for i, part := range strings.Split(list, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		label, value, ok := strings.Cut(part, "=")
		if !ok || label == "" || value == "" {
			return nil, fmt.Errorf("part %d of %s is not label=value", i+1, name)
		}
		if seen[label] {
			return nil, fmt.Errorf("%s names %q twice", name, label)
		}
		seen[label] = true
		all = append(all, [2]string{label, value})
	}
	return all, nil
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
	plane := demo.NewPlane(kind.Name, booted.URL, booted.Key, "")
	plane.Inside, plane.Close = inside, booted.Close
	return plane, nil
}
