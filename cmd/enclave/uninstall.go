package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"github.com/enclave-run/enclave/internal/server"
	"github.com/enclave-run/enclave/internal/statedir"
	"github.com/enclave-run/enclave/internal/ui"
	"github.com/spf13/cobra"
)

func (p *program) uninstallCommand() *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use:   "uninstall",
		Short: "Remove everything Enclave keeps on this host",
		Long: `Uninstall stops the background control plane, destroys its sandboxes, and removes
the state directory with sessions, audit records, keys and images, and what is
mounted in it. It touches only a directory that Enclave made, and names what it
removes before it asks. An image that a Docker daemon was given stays there, for
others may use it: ` + "`docker image ls enclave-sandbox`" + ` lists them.`,
		Example: `  sudo enclave audit export s-1a2b3c-7 -o record.json   # keep what you need first
  sudo enclave uninstall
  sudo enclave uninstall --state /srv/enclave --yes`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.uninstall(cmd.Context(), yes)
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return c
}

func (p *program) uninstall(ctx context.Context, yes bool) error {
	s, err := statedir.Find(p.opts.State)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("there is nothing at %s: it is not installed here, or elsewhere (--state)", p.opts.State)
	}
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		info, err := os.Stat(s.Path)
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); !ok || int(st.Uid) != os.Geteuid() {
			return fmt.Errorf("%s is not yours: sudo enclave uninstall", s.Path)
		}
	}
	if h, held, err := s.Held(); err != nil {
		return err
	} else if held && h.Mode == statedir.ModeServe {
		return fmt.Errorf("`enclave serve` (process %d) has %s: stop it with `kill %d` first", h.PID, s.Path, h.PID)
	}
	fmt.Fprintf(p.err, "this removes %s:\n", s.Path)
	for _, line := range s.Contents() {
		fmt.Fprintf(p.err, "  %s\n", ui.Visible(line))
	}
	if !yes {
		if !ui.Typed(p.in) {
			return errors.New("nothing was removed: say --yes")
		}
		fmt.Fprint(p.err, "remove all of it? [y/N] ")
		answer, _ := bufio.NewReader(p.in).ReadString('\n')
		if a := strings.ToLower(strings.TrimSpace(answer)); a != "y" && a != "yes" {
			return errors.New("nothing was removed")
		}
	}
	if err := server.StopBackground(ctx, s); err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, 3*server.LeaseGrace)
	defer cancel()
	locked, err := s.Lock(wait, statedir.ModeCommand)
	if err != nil {
		return err
	}
	defer locked.Unlock()
	if err := server.Sweep(ctx, s, p.hostOf(s, nil)); err != nil {
		return err
	}
	if err := server.Remove(ctx, locked, p.hostOf(s, nil)); err != nil {
		return err
	}
	exe, err := os.Executable()
	if err != nil {
		exe = "enclave"
	}
	_, err = fmt.Fprintf(p.err, "removed %s; what is left is this program: rm %s\n", s.Path, exe)
	return err
}
