package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/enclave-run/enclave/internal/image"
	"github.com/enclave-run/enclave/internal/statedir"
	"github.com/enclave-run/enclave/internal/ui"
	"github.com/spf13/cobra"
)

func (p *program) imageCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "image",
		Short: "Build, fetch and list the images that sandboxes start from",
		Long: `Images are kept in the state directory, content-addressed, and unpacked once for
all sandboxes, which share them read-only. Sessions start from the image called
"default".

An image that is removed, or loses its last name to another, takes its files away
from the sandboxes that still run on it: let those end first.`,
		Example: `  sudo enclave image build
  sudo enclave image pull registry.example.com/agents/python:3 --name default
  sudo enclave image import rootfs.tar.gz --name default`,
	}
	c.AddCommand(p.imageBuild(), p.imagePull(), p.imageImport(), p.imageList(), p.imageRemove(), p.imageExport())
	return c
}

// images opens the image store of the state directory.
func (p *program) images() (*image.Store, error) {
	s, err := statedir.Open(p.opts.State)
	if err != nil {
		return nil, err
	}
	return image.Open(s.File("images"))
}

// install runs what brings an image, with progress, and prints its digest.
func (p *program) install(ctx context.Context, asJSON bool, bring func(context.Context, *image.Store, func(image.Step)) (string, error)) error {
	store, err := p.images()
	if err != nil {
		return err
	}
	var digest string
	if err := p.bring(ctx, func(ctx context.Context, step func(image.Step)) (err error) {
		digest, err = bring(ctx, store, step)
		return err
	}); err != nil {
		return err
	}
	if asJSON {
		return ui.PrintJSON(p.out, map[string]string{"digest": digest})
	}
	_, err = fmt.Fprintln(p.out, digest)
	return err
}

// bring runs what makes something in the state directory as a whole or not at all,
// and shows its progress.
func (p *program) bring(ctx context.Context, work func(context.Context, func(image.Step)) error) error {
	ctx, in := ui.Interruptible(ctx)
	defer in.Stop()
	show := ui.NewProgress(p.err, p.env("TERM"), false)
	err := work(ctx, func(s image.Step) { show.Step(s.String(), s.Percent) })
	show.End()
	if code := in.Status(); code != 0 && err != nil {
		return &exit{code, errors.New("interrupted; nothing half-made was kept")}
	}
	return err
}

func (p *program) imageBuild() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "build",
		Short:   "Build the default image from Debian packages",
		Example: "  sudo enclave image build",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.install(cmd.Context(), asJSON, func(ctx context.Context, s *image.Store, step func(image.Step)) (string, error) {
				return s.Build(ctx, step)
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return c
}

// named gives the image a second name, if one was asked for.
func named(ctx context.Context, s *image.Store, digest string, err error, name string) (string, error) {
	if err == nil && name != "" {
		err = s.Tag(ctx, digest, name)
	}
	return digest, err
}

func (p *program) imagePull() *cobra.Command {
	var asJSON bool
	var name string
	c := &cobra.Command{
		Use:     "pull REFERENCE",
		Short:   "Fetch an image from a registry",
		Example: "  sudo enclave image pull registry.example.com/agents/python@sha256:... --name default",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.install(cmd.Context(), asJSON, func(ctx context.Context, s *image.Store, step func(image.Step)) (string, error) {
				digest, err := s.Pull(ctx, args[0], step)
				return named(ctx, s, digest, err, name)
			})
		},
	}
	c.Flags().StringVar(&name, "name", image.Default, "also call it `NAME`; sessions start from \"default\"")
	c.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return c
}

func (p *program) imageImport() *cobra.Command {
	var asJSON bool
	var name string
	c := &cobra.Command{
		Use:   "import FILE",
		Short: "Bring an image from a file",
		Long: `Import brings an image from a file: an OCI layout, what docker save writes, or a
plain root filesystem, each as a tar archive, compressed or not.`,
		Example: `  docker save python:3 | gzip > python.tar.gz
  sudo enclave image import python.tar.gz`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.install(cmd.Context(), asJSON, func(ctx context.Context, s *image.Store, step func(image.Step)) (string, error) {
				return s.Import(ctx, args[0], name, step)
			})
		},
	}
	c.Flags().StringVar(&name, "name", image.Default, "call it `NAME`; sessions start from \"default\"")
	c.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return c
}

func (p *program) imageList() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the images of this host",
		Example: "  sudo enclave image list --json",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			store, err := p.images()
			if err != nil {
				return err
			}
			infos, err := store.List()
			if err != nil {
				return err
			}
			return ui.ShowImages(p.out, infos, asJSON)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return c
}

func (p *program) imageRemove() *cobra.Command {
	return &cobra.Command{
		Use:     "rm NAME|DIGEST",
		Short:   "Remove an image",
		Example: "  sudo enclave image rm default",
		Args:    cobra.ExactArgs(1), ValidArgsFunction: p.completeImages,
		RunE: func(cmd *cobra.Command, args []string) error {
			store, err := p.images()
			if err != nil {
				return err
			}
			return store.Remove(cmd.Context(), args[0])
		},
	}
}

func (p *program) imageExport() *cobra.Command {
	var out string
	c := &cobra.Command{
		Use:     "export NAME|DIGEST",
		Short:   "Write an image to a file, to be imported on a host without a network",
		Example: "  enclave image export default --output image.tar",
		Args:    cobra.ExactArgs(1), ValidArgsFunction: p.completeImages,
		RunE: func(cmd *cobra.Command, args []string) error {
			store, err := p.images()
			if err != nil {
				return err
			}
			return ui.ToFile(p.out, out, func(w io.Writer) error { return store.Export(cmd.Context(), args[0], w) })
		},
	}
	c.Flags().StringVarP(&out, "output", "o", "-", "`FILE` to write; - is stdout")
	return c
}
