package main

import (
	"cmp"
	"fmt"
	"net"

	"github.com/spf13/cobra"
)

// serveOptions is everything that a flag or an environment variable can set for
// a control plane. Each has both; validate refuses, in words, before anything
// is opened. The control plane behind `enclave run` has no flags: its options
// come from the environment of the run that started it.
type serveOptions struct {
	Listen string // --listen, ENCLAVE_LISTEN

	Admission admissionOptions
	Observe   observeOptions
	Webhook   webhookOptions
	Retention retentionOptions
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

		Admission: admissionDefaults(env),
		Observe:   observeDefaults(or),
		Webhook:   webhookDefaults(or),
		Retention: retentionDefaults(or),
	}
}

// flags adds a flag for each option to c.
func (o *serveOptions) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&o.Listen, "listen", o.Listen, "loopback `ADDRESS` of the API (ENCLAVE_LISTEN)")
	o.Admission.flags(c)
	o.Observe.flags(c)
	o.Webhook.flags(c)
	o.Retention.flags(c)
}

// validate refuses what can't work or would be dangerous.
func (o *serveOptions) validate() error {
	return cmp.Or(o.validateListen(), o.Admission.validate(), o.Observe.validate(), o.Webhook.validate(), o.Retention.validate())
}

// validateListen refuses an address that others than this host can reach.
func (o *serveOptions) validateListen() error {
	host, port, err := net.SplitHostPort(o.Listen)
	if err != nil || port == "" {
		return fmt.Errorf("--listen %q is not host:port, such as %s", o.Listen, defaultListen)
	}
	if !loopback(host) {
		return fmt.Errorf("--listen %q is not a loopback address: this server speaks plain HTTP, so put a TLS proxy in front of %s", o.Listen, defaultListen)
	}
	return nil
}

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
