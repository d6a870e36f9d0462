package main

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/ui"
	"github.com/enclave-run/enclave/internal/webhook"
	"github.com/spf13/cobra"
)

// webhookOptions is where the control plane's own fetches may go besides the
// public internet.
type webhookOptions struct {
	Allow []string // --webhook-allow, ENCLAVE_WEBHOOK_ALLOW: private or loopback ranges
}

func webhookDefaults(or func(name, def string) string) webhookOptions {
	var o webhookOptions
	if v := or("ENCLAVE_WEBHOOK_ALLOW", ""); v != "" {
		o.Allow = strings.Split(v, ",")
	}
	return o
}

func (o *webhookOptions) flags(c *cobra.Command) {
	c.Flags().StringSliceVar(&o.Allow, "webhook-allow", o.Allow,
		"private or loopback `CIDR` that webhooks may go to; repeatable (ENCLAVE_WEBHOOK_ALLOW, separated by commas)")
}

func (o *webhookOptions) validate() error {
	_, err := o.ranges()
	return err
}

// nowhere takes every address for this host's own: for a check of options, by which
// nothing is reached.
func nowhere(netip.Addr) bool { return true }

// ranges returns where webhooks may go besides the public internet.
func (o *webhookOptions) ranges() ([]netip.Prefix, error) {
	return prefixes("--webhook-allow", o.Allow)
}

// prefixes returns the ranges that a flag lists, where fetches of the control plane's
// own may go besides the public internet.
func prefixes(flag string, ranges []string) ([]netip.Prefix, error) {
	var allow []netip.Prefix
	for _, text := range ranges {
		p, err := netip.ParsePrefix(strings.TrimSpace(text))
		if err != nil {
			return nil, fmt.Errorf("%s %q is not a range such as 10.20.0.0/16", flag, text)
		}
		allow = append(allow, p)
	}
	if _, err := webhook.NewReach(allow, nowhere); err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	return allow, nil
}

func (p *program) webhookCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "webhook",
		Short:   "Show what verifies webhooks",
		Example: "  enclave webhook key",
	}
	c.AddCommand(p.webhookKey())
	return c
}

func (p *program) webhookKey() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "key",
		Short: "Print the public key that verifies webhooks",
		Long: `Key prints the public key by which a receiver knows that a webhook is this
control plane's: whpk_ and base64, as Standard Webhooks has it. In Go,
enclave.VerifyWebhook checks a request with it.`,
		Example: "  enclave webhook key --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.client(cmd.Context(), func(ctx context.Context, cl *enclave.Client) error {
				k, err := cl.WebhookKey(ctx)
				if err != nil {
					return err
				}
				if asJSON {
					return ui.PrintJSON(p.out, k)
				}
				_, err = fmt.Fprintln(p.out, ui.Visible(k.PublicKey))
				return err
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return c
}
