package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/observe"
	"github.com/enclave-run/enclave/internal/statedir"
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
	_, err := o.reach(nowhere)
	return err
}

// nowhere takes every address for this host's own: for a check of options, by which
// nothing is reached.
func nowhere(netip.Addr) bool { return true }

// reach returns where webhooks may go from a host that says which addresses are
// its own.
func (o *webhookOptions) reach(own func(netip.Addr) bool) (webhook.Reach, error) {
	return reachOf("--webhook-allow", o.Allow, own)
}

// reachOf returns where the control plane's own fetches may go when a flag lists
// ranges besides the public internet.
func reachOf(flag string, ranges []string, own func(netip.Addr) bool) (webhook.Reach, error) {
	var allow []netip.Prefix
	for _, text := range ranges {
		p, err := netip.ParsePrefix(strings.TrimSpace(text))
		if err != nil {
			return webhook.Reach{}, fmt.Errorf("%s %q is not a range such as 10.20.0.0/16", flag, text)
		}
		allow = append(allow, p)
	}
	r, err := webhook.NewReach(allow, own)
	if err != nil {
		return webhook.Reach{}, fmt.Errorf("%s: %w", flag, err)
	}
	return r, nil
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
					return printJSON(p.out, k)
				}
				_, err = fmt.Fprintln(p.out, visible(k.PublicKey))
				return err
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return c
}

// webhookTimeout is how long one attempt may take.
const webhookTimeout = 10 * time.Second

// guardedClient returns a client for the control plane's own fetches.
func guardedClient(reach webhook.Reach, timeout time.Duration) (*http.Client, error) {
	return webhook.NewClient(webhook.ClientConfig{
		Reach: reach, Resolver: net.DefaultResolver, Dialer: &net.Dialer{}, Timeout: timeout,
	})
}

// webhooks makes what tells tenants' servers of ends. It does not work yet.
func (n *node) webhooks(s *statedir.Dir, reach webhook.Reach, m *observe.Metrics, log *slog.Logger, now func() time.Time) (*webhook.Worker, webhook.Key, error) {
	key, err := loadWebhookKey(s)
	if err != nil {
		return nil, webhook.Key{}, err
	}
	client, err := guardedClient(reach, webhookTimeout)
	if err != nil {
		return nil, webhook.Key{}, err
	}
	w, err := webhook.NewWorker(webhook.Config{
		Outbox: n.store, Client: client, Key: key, Log: log, Attempted: m.Delivered, Now: now,
	})
	return w, key, err
}

// loadWebhookKey returns the key that signs webhooks, and makes it if there is
// none. The caller holds the lock.
func loadWebhookKey(s *statedir.Dir) (webhook.Key, error) {
	path := s.File("db", "webhook.key")
	raw, err := statedir.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if raw, err = webhook.GenerateKey(rand.Reader); err == nil {
			err = statedir.WriteFile(path, raw, 0o600)
		}
	}
	if err != nil {
		return webhook.Key{}, fmt.Errorf("webhook key: %w", err)
	}
	key, err := webhook.ParseKey(raw)
	if err != nil {
		return webhook.Key{}, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}
