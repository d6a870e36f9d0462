package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/enclave-run/enclave/internal/control"
)

// retentionOptions say how long ended sessions are kept. The zero value keeps
// everything for ever.
type retentionOptions struct {
	Retain string // --retain, ENCLAVE_RETAIN
	Forget string // --forget, ENCLAVE_FORGET
}

func retentionDefaults(or func(name, def string) string) retentionOptions {
	return retentionOptions{Retain: or("ENCLAVE_RETAIN", "168h"), Forget: or("ENCLAVE_FORGET", "720h")}
}

func (o *retentionOptions) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&o.Retain, "retain", o.Retain, "tear ended sessions down after this `DURATION`; 0 is never (ENCLAVE_RETAIN)")
	f.StringVar(&o.Forget, "forget", o.Forget, "drop code, output and result of sessions that are torn down, this `DURATION` after their end; 0 is never (ENCLAVE_FORGET)")
}

func (o *retentionOptions) validate() error {
	_, err := o.retention()
	return err
}

// retention returns what the options say, or what is wrong with them.
func (o *retentionOptions) retention() (control.Retention, error) {
	var r control.Retention
	for _, f := range []struct {
		name, text string
		to         *time.Duration
	}{{"--retain", o.Retain, &r.TearDown}, {"--forget", o.Forget, &r.Forget}} {
		if f.text == "" {
			continue
		}
		d, err := time.ParseDuration(f.text)
		if err != nil || d < 0 {
			return control.Retention{}, fmt.Errorf("%s %q is not a duration such as 168h, or 0 for never", f.name, f.text)
		}
		*f.to = d
	}
	if r.Forget != 0 && r.Forget < r.TearDown {
		return control.Retention{}, fmt.Errorf("--forget %s is less than --retain %s: what is not torn down is not forgotten", o.Forget, o.Retain)
	}
	return r, nil
}
