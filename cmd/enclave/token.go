package main

import (
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/enclave-run/enclave/internal/auth"
	"github.com/enclave-run/enclave/internal/server"
	"github.com/enclave-run/enclave/internal/statedir"
	"github.com/enclave-run/enclave/internal/ui"
	"github.com/spf13/cobra"
)

func (p *program) tokenCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "token",
		Short: "Create tokens, which expire by themselves",
		Long: `A token is a credential that expires by itself, for programs that need one for a
while. ENCLAVE_TOKEN holds it for the other commands.

Tokens are signed with a secret of the state directory, so this command is for
root on the control plane's own machine. A token can't be revoked before it
expires: for that, create an API key (enclave key create).`,
		Example: `  sudo enclave token create --user ci --role developer --ttl 15m`,
	}
	c.AddCommand(p.tokenCreate())
	return c
}

func (p *program) tokenCreate() *cobra.Command {
	g := auth.Grant{TTL: time.Hour}
	var asJSON bool
	c := &cobra.Command{
		Use:   "create",
		Short: "Create a token and print it",
		Example: `  sudo enclave token create --user ci --role developer --ttl 15m
  ENCLAVE_TOKEN=$(sudo enclave token create --org acme --user ada --role viewer) enclave session list`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if p.opts.remote() {
				return errors.New("tokens are made on the control plane's own machine: unset ENCLAVE_BASE_URL, or create an API key with `enclave key create`")
			}
			s, err := statedir.Find(p.opts.State)
			if err != nil {
				return err
			}
			secret, err := server.TokenSecret(s)
			if errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("%s has no token key yet: the first start of `enclave serve` makes it", s.Path)
			}
			if errors.Is(err, fs.ErrPermission) {
				return statedir.Unwritable(s.Path, err)
			}
			if err != nil {
				return err
			}
			token, expires, err := auth.Mint(secret, p.now(), g)
			if err != nil {
				return err
			}
			if asJSON {
				return ui.PrintJSON(p.out, map[string]any{
					"token": token, "orgId": g.Org, "user": g.User, "role": g.Role, "expiresAt": expires.UTC(),
				})
			}
			_, err = fmt.Fprintln(p.out, token)
			return err
		},
	}
	c.Flags().StringVar(&g.Org, "org", auth.Local().Org, "organisation")
	c.Flags().StringVar(&g.User, "user", "operator", "who it is for")
	c.Flags().StringVar(&g.Role, "role", auth.Developer, "owner, admin, developer or viewer")
	_ = c.RegisterFlagCompletionFunc("role", completeWords(auth.Owner, auth.Admin, auth.Developer, auth.Viewer)) // fails for a flag that is not there
	c.Flags().DurationVar(&g.TTL, "ttl", g.TTL, "how long it is good, at most 720h (30 days)")
	c.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return c
}
