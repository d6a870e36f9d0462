package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/enclave-run/enclave/internal/backend/all"
	"github.com/enclave-run/enclave/internal/image"
	"github.com/enclave-run/enclave/internal/statedir"
	"github.com/enclave-run/enclave/internal/ui"
)

// errNotRoot is for a user who lacks the rights that isolation takes.
var errNotRoot = errors.New("running code in a sandbox needs root: sudo enclave ... (`--backend simulator` models outcomes without root, and runs nothing)")

// prepare makes this host ready to run a session, with progress on stderr. It
// does nothing for a remote control plane. It returns the backend that it is ready
// for.
func (p *program) prepare(ctx context.Context, quiet bool) (string, error) {
	if p.opts.remote() {
		return "", nil
	}
	kind, err := p.chooseBackend(ctx)
	if err != nil {
		return "", err
	}
	s, err := statedir.Open(p.opts.State)
	if err != nil {
		return "", err
	}
	images, err := image.Open(s.File("images"))
	if err != nil {
		return "", err
	}
	return kind.Name, p.ensureImage(ctx, images, kind, quiet)
}

// ensureImage builds the default image if there is none.
func (p *program) ensureImage(ctx context.Context, images *image.Store, kind all.Kind, quiet bool) error {
	if !kind.Executes {
		return nil // it executes nothing, so there is nothing to start from
	}
	if _, err := images.Resolve(image.Default); !errors.Is(err, image.ErrNotFound) {
		return err
	}
	// Before a minute of building: nothing could start from it.
	if _, err := p.able(ctx, kind); err != nil {
		return err
	}
	if !quiet {
		fmt.Fprintln(p.err, "building the sandbox image; this is done once and may take a minute")
	}
	start := p.now()
	show := ui.NewProgress(p.err, p.env("TERM"), quiet)
	_, err := images.Build(ctx, func(s image.Step) { show.Step(s.String(), s.Percent) })
	show.End()
	if err == nil && !quiet {
		fmt.Fprintf(p.err, "built the sandbox image in %s: sessions can run\n", p.now().Sub(start).Round(time.Second))
	}
	return err
}
