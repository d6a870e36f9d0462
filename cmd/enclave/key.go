package main

import (
	"context"
	"fmt"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/auth"
	"github.com/enclave-run/enclave/internal/ui"
	"github.com/spf13/cobra"
)

func (p *program) keyCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "key",
		Short: "Create, list and revoke API keys",
		Long: `API keys are for programs that reach the control plane over TCP. Root on this
host needs none: it uses the socket in the state directory, and so manages the
keys of every organisation. With ENCLAVE_BASE_URL and a key of the role owner or
admin, these commands manage the keys of that key's organisation.`,
		Example: `  sudo enclave key create --user ci --role developer
  sudo enclave key list
  sudo enclave key revoke 0123456789abcdef`,
	}
	c.AddCommand(p.keyCreate(), p.keyList(), p.keyRevoke())
	return c
}

// withClient runs f with the control plane to drive.
func (p *program) withClient(ctx context.Context, f func(*enclave.Client) error) error {
	k, err := p.connect(ctx)
	if err != nil {
		return err
	}
	defer k.Close()
	return k.Explain(f(k.Client))
}

func (p *program) keyCreate() *cobra.Command {
	var r enclave.KeyRequest
	var asJSON bool
	c := &cobra.Command{
		Use:     "create",
		Short:   "Create a key and print it, this once",
		Example: "  sudo enclave key create --user ci --role developer",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.withClient(cmd.Context(), func(client *enclave.Client) error {
				k, err := client.CreateKey(cmd.Context(), r)
				if err != nil {
					return err
				}
				if asJSON {
					err = ui.PrintJSON(p.out, k)
				} else {
					_, err = fmt.Fprintln(p.out, ui.Visible(k.Plaintext))
				}
				if err != nil {
					return fmt.Errorf("show the key, which is made: %w: nobody knows it now: `enclave key revoke %s`", err, ui.Visible(k.ID))
				}
				return nil
			})
		},
	}
	c.Flags().StringVar(&r.OrgID, "org", "", "organisation (default one's own; root on this host: default)")
	c.Flags().StringVar(&r.User, "user", "operator", "who it is for")
	c.Flags().StringVar(&r.Role, "role", auth.Developer, "owner, admin, developer or viewer")
	c.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	_ = c.RegisterFlagCompletionFunc("role", completeWords(auth.Owner, auth.Admin, auth.Developer, auth.Viewer)) // fails for a flag that is not there
	return c
}

func (p *program) keyList() *cobra.Command {
	var o enclave.KeyListOptions
	var asJSON bool
	c := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the keys; their secrets are not kept",
		Example: "  sudo enclave key list --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.withClient(cmd.Context(), func(client *enclave.Client) error {
				keys := []enclave.Key{}
				for more := true; more; more = o.Cursor != "" {
					page, err := client.Keys(cmd.Context(), o)
					if err != nil {
						return err
					}
					keys, o.Cursor = append(keys, page.Items...), page.NextCursor
				}
				if asJSON {
					return ui.PrintJSON(p.out, map[string]any{"items": keys})
				}
				return ui.ShowKeys(p.out, keys)
			})
		},
	}
	c.Flags().StringVar(&o.OrgID, "org", "", "organisation (default one's own; root on this host: default)")
	c.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return c
}

func (p *program) keyRevoke() *cobra.Command {
	return &cobra.Command{
		Use:     "revoke ID",
		Short:   "Revoke a key, at once and for good",
		Example: "  sudo enclave key revoke 0123456789abcdef",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.withClient(cmd.Context(), func(client *enclave.Client) error {
				return client.RevokeKey(cmd.Context(), args[0])
			})
		},
	}
}
