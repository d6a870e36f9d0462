package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/enclave-run/enclave/internal/auth"
	"github.com/enclave-run/enclave/internal/store"
)

func (p *program) keyCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "key",
		Short: "Create, list and revoke API keys of this host's control plane",
		Long: `API keys are for programs that reach the control plane over TCP. Root on this
host needs none: it uses the socket in the state directory.

These commands work on the state directory itself, while no server has it.`,
		Example: `  sudo enclave key create --user ci --role developer
  sudo enclave key list
  sudo enclave key revoke 0123456789abcdef`,
	}
	c.AddCommand(p.keyCreate(), p.keyList(), p.keyRevoke())
	return c
}

// withKeys runs f with the store of the state directory, which no server may
// have meanwhile.
func (p *program) withKeys(ctx context.Context, f func(*store.Store) error) error {
	if p.opts.remote() {
		return errors.New("keys are managed on the control plane's own machine: unset ENCLAVE_BASE_URL")
	}
	s, err := openState(p.opts.State)
	if err != nil {
		return err
	}
	// A background control plane ends by itself soon after its last client.
	wait, cancel := context.WithTimeout(ctx, 3*leaseGrace)
	defer cancel()
	if h, held, err := s.held(); err == nil && held && h.Mode == modeServe {
		return fmt.Errorf("`enclave serve` (process %d) has the state directory %s: stop it with `kill %d`, change the keys, and start it again", h.PID, s.path, h.PID)
	}
	locked, err := s.lock(wait, modeCommand)
	if err != nil {
		return err
	}
	defer locked.unlock()
	st, err := store.Open(ctx, s.file("db", "enclave.db"), store.Options{Now: p.now})
	if err != nil {
		return newerStore(err, s.path)
	}
	return errors.Join(f(st), st.Close())
}

func (p *program) keyCreate() *cobra.Command {
	var org, user, role string
	var asJSON bool
	c := &cobra.Command{
		Use:     "create",
		Short:   "Create a key and print it, this once",
		Example: "  sudo enclave key create --user ci --role developer",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.withKeys(cmd.Context(), func(st *store.Store) error {
				k, plaintext, err := auth.Generate(p.now(), org, user, role)
				if err != nil {
					return err
				}
				if err := st.SaveKey(cmd.Context(), k); err != nil {
					return err
				}
				if asJSON {
					return printJSON(p.out, map[string]any{"id": k.ID, "key": plaintext, "orgId": k.Org, "user": k.User, "role": k.Role, "scopes": k.Scopes})
				}
				_, err = fmt.Fprintln(p.out, plaintext)
				return err
			})
		},
	}
	c.Flags().StringVar(&org, "org", auth.Local().Org, "organisation")
	c.Flags().StringVar(&user, "user", "operator", "who it is for")
	c.Flags().StringVar(&role, "role", auth.Developer, "owner, admin, developer or viewer")
	c.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return c
}

func (p *program) keyList() *cobra.Command {
	var org string
	var asJSON bool
	c := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the keys; their secrets are not kept",
		Example: "  sudo enclave key list --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.withKeys(cmd.Context(), func(st *store.Store) error {
				keys, err := st.Keys(cmd.Context(), org)
				if err != nil {
					return err
				}
				type item struct {
					ID      string     `json:"id"`
					User    string     `json:"user"`
					Role    string     `json:"role"`
					Scopes  []string   `json:"scopes"`
					Created time.Time  `json:"created"`
					Revoked *time.Time `json:"revoked"`
				}
				items := []item{}
				t := newTable(p.out, "ID", "USER", "ROLE", "SCOPES", "CREATED", "REVOKED")
				for _, k := range keys {
					i, revoked := item{k.ID, k.User, k.Role, k.Scopes, k.Created.UTC(), nil}, ""
					if !k.Revoked.IsZero() {
						at := k.Revoked.UTC()
						i.Revoked, revoked = &at, at.Format(time.RFC3339)
					}
					items = append(items, i)
					if !asJSON {
						t.row(k.ID, k.User, k.Role, strings.Join(k.Scopes, " "), k.Created.UTC().Format(time.RFC3339), revoked)
					}
				}
				if asJSON {
					return printJSON(p.out, map[string]any{"items": items})
				}
				return t.flush()
			})
		},
	}
	c.Flags().StringVar(&org, "org", auth.Local().Org, "organisation")
	c.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return c
}

func (p *program) keyRevoke() *cobra.Command {
	var org string
	c := &cobra.Command{
		Use:     "revoke ID",
		Short:   "Revoke a key for good",
		Example: "  sudo enclave key revoke 0123456789abcdef",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.withKeys(cmd.Context(), func(st *store.Store) error {
				return st.RevokeKey(cmd.Context(), org, args[0])
			})
		},
	}
	c.Flags().StringVar(&org, "org", auth.Local().Org, "organisation")
	return c
}
