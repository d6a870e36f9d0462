package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/enclave-run/enclave/internal/server"
	"github.com/enclave-run/enclave/internal/statedir"
	"github.com/spf13/cobra"
)

func (p *program) auditRotateKey() *cobra.Command {
	c := &cobra.Command{
		Use:   "rotate-key",
		Short: "Have a new key sign this host's log, and destroy the old one",
		Long: `Rotate-key makes a new key for the log of this host, writes into the log an event
that both keys sign, and destroys the old key. No server may be running.

The old public key still verifies what follows: an exported record has the
rotations with it. An interrupted rotation is finished, or undone, by the
next command that opens the log.`,
		Example: "  sudo enclave audit rotate-key > log.vkey",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if p.opts.remote() {
				return errors.New("the key of a remote log is rotated on its machine: unset ENCLAVE_BASE_URL")
			}
			if err := p.opts.Serve.Checkpoint.validate(); err != nil {
				return err
			}
			s, err := statedir.Find(p.opts.State)
			if err != nil {
				return err
			}
			if _, err := server.PublicKey(s); err != nil {
				return err
			}
			wait, cancel := context.WithTimeout(cmd.Context(), 3*server.LeaseGrace)
			defer cancel()
			locked, err := s.Lock(wait, statedir.ModeCommand)
			if err != nil {
				return err
			}
			defer locked.Unlock()
			key, err := server.RotateKey(cmd.Context(), locked, p.opts.Serve.Checkpoint.File, p.now)
			if err != nil {
				return err
			}
			fmt.Fprintln(p.err, "the old key is destroyed; the new public key is:")
			_, err = fmt.Fprintln(p.out, key)
			return err
		},
	}
	p.opts.Serve.Checkpoint.flags(c)
	return c
}
