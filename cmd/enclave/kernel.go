package main

import (
	"context"
	"fmt"
	"os"

	"github.com/enclave-run/enclave/internal/backend/microvm/kernel"
	"github.com/enclave-run/enclave/internal/image"
	"github.com/enclave-run/enclave/internal/statedir"
	"github.com/enclave-run/enclave/internal/ui"
	"github.com/spf13/cobra"
)

func (p *program) kernelCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "kernel",
		Short: "Fetch and list the kernels that microVMs boot",
		Long: `A microVM boots a kernel of its own: Debian's for virtual machines, unchanged, of
which the few modules that the guest needs are kept. Kernels are kept in the
state directory; a new microVM boots the newest.`,
		Example: `  sudo enclave kernel install
  sudo enclave kernel import linux-image-6.1.0-56-cloud-amd64_6.1.192-2_amd64.deb`,
	}
	c.AddCommand(p.kernelInstall(), p.kernelImport(), p.kernelList())
	return c
}

// kernelDir is the directory of guest kernels in the state directory.
func (p *program) kernelDir() (string, error) {
	s, err := statedir.Open(p.opts.State)
	if err != nil {
		return "", err
	}
	return s.File("kernels"), nil
}

// bringKernel runs what brings a kernel into dir, with progress, and prints it.
func (p *program) bringKernel(ctx context.Context, asJSON bool, bring func(ctx context.Context, dir string, say func(string)) (kernel.Kernel, error)) error {
	dir, err := p.kernelDir()
	if err != nil {
		return err
	}
	var k kernel.Kernel
	if err := p.bring(ctx, func(ctx context.Context, step func(image.Step)) (err error) {
		k, err = bring(ctx, dir, func(text string) { step(image.Step{Text: text, Percent: -1}) })
		return err
	}); err != nil {
		return err
	}
	if asJSON {
		return ui.PrintJSON(p.out, ui.KernelItem(k))
	}
	_, err = fmt.Fprintf(p.out, "%s %s\n", k.Package, k.Version)
	return err
}

// importKernel brings the kernel of a package, which it closes.
func importKernel(ctx context.Context, dir string, deb *os.File, say func(string)) (kernel.Kernel, error) {
	defer deb.Close()
	say("unpacking the kernel and its modules")
	info, err := deb.Stat()
	if err != nil {
		return kernel.Kernel{}, err
	}
	return kernel.Import(ctx, dir, deb, info.Size())
}

func (p *program) kernelInstall() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "install",
		Short: "Fetch Debian's current kernel for virtual machines",
		Long: `Install downloads the package that Debian's linux-image-cloud-amd64 leads to, with
apt-get, which checks its signature. It installs nothing on this host: the kernel
is unpacked into the state directory.`,
		Example: "  sudo enclave kernel install",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.bringKernel(cmd.Context(), asJSON, func(ctx context.Context, dir string, say func(string)) (kernel.Kernel, error) {
				deb, err := kernel.Fetch(ctx, dir, say)
				if err != nil {
					return kernel.Kernel{}, err
				}
				return importKernel(ctx, dir, deb, say)
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return c
}

func (p *program) kernelImport() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "import FILE.deb",
		Short: "Bring a kernel from a Debian package",
		Long: `Import brings the kernel of a Debian package, linux-image-VERSION-cloud-amd64, for
a host that can't fetch one itself.`,
		Example: `  apt-get download linux-image-6.1.0-56-cloud-amd64
  sudo enclave kernel import linux-image-6.1.0-56-cloud-amd64_6.1.192-2_amd64.deb`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.bringKernel(cmd.Context(), asJSON, func(ctx context.Context, dir string, say func(string)) (kernel.Kernel, error) {
				deb, err := os.Open(args[0])
				if err != nil {
					return kernel.Kernel{}, err
				}
				return importKernel(ctx, dir, deb, say)
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return c
}

func (p *program) kernelList() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the kernels that microVMs may boot, the newest last",
		Example: "  sudo enclave kernel list --json",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			dir, err := p.kernelDir()
			if err != nil {
				return err
			}
			all, err := kernel.List(dir)
			if err != nil {
				return err
			}
			if len(all) == 0 && !asJSON {
				fmt.Fprintf(p.err, "enclave: %s\n", kernel.ErrNone)
			}
			return ui.ShowKernels(p.out, all, asJSON)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return c
}
