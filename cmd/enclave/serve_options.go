package main

import (
	"cmp"

	"github.com/enclave-run/enclave/internal/server"
	"github.com/spf13/cobra"
)

// serveOptions is everything that a flag or an environment variable can set for
// a control plane. Each has both; validate refuses, in words, before anything
// is opened. The control plane behind `enclave run` has no flags: its options
// come from the environment of the run that started it.
type serveOptions struct {
	Listen string // --listen, ENCLAVE_LISTEN

	Access     accessOptions
	Admission  admissionOptions
	Observe    observeOptions
	Webhook    webhookOptions
	Retention  retentionOptions
	Checkpoint checkpointOptions
}

// serveDefaults returns the options before any flag was read.
func serveDefaults(env func(string) string) serveOptions {
	or := func(name, def string) string {
		if v := env(name); v != "" {
			return v
		}
		return def
	}
	return serveOptions{
		Listen: or("ENCLAVE_LISTEN", defaultListen),

		Access:     accessDefaults(or),
		Admission:  admissionDefaults(env),
		Observe:    observeDefaults(or),
		Webhook:    webhookDefaults(or),
		Retention:  retentionDefaults(or),
		Checkpoint: checkpointDefaults(or),
	}
}

// flags adds a flag for each option to c.
func (o *serveOptions) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&o.Listen, "listen", o.Listen, "`ADDRESS` of the API; beyond this host, only with TLS (ENCLAVE_LISTEN)")
	o.Access.flags(c)
	o.Admission.flags(c)
	o.Observe.flags(c)
	o.Webhook.flags(c)
	o.Retention.flags(c)
	o.Checkpoint.flags(c)
}

// config is what the options say of a control plane.
func (o *serveOptions) config() (c server.Config, err error) {
	if c.Admission, err = o.Admission.parse(); err != nil {
		return c, err
	}
	if c.Retention, err = o.Retention.retention(); err != nil {
		return c, err
	}
	if c.Webhooks, err = o.Webhook.ranges(); err != nil {
		return c, err
	}
	if c.Issuers, err = o.Access.issuers(); err != nil {
		return c, err
	}
	if c.IssuersIn, err = o.Access.issuerRanges(); err != nil {
		return c, err
	}
	c.Hosts, c.Checkpoint, c.Traces = o.Access.Hosts, o.Checkpoint.File, o.Observe.OTLPEndpoint
	return c, nil
}

// validate refuses what can't work or would be dangerous.
func (o *serveOptions) validate() error {
	return cmp.Or(o.Access.validate(), o.validateListen(), o.Admission.validate(), o.Observe.validate(), o.Webhook.validate(), o.Retention.validate(), o.Checkpoint.validate())
}
