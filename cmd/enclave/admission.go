package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/enclave-run/enclave/internal/control"
	"github.com/enclave-run/enclave/internal/server"
	"github.com/spf13/cobra"
)

// admissionOptions say how many sessions a control plane takes on.
type admissionOptions struct {
	MaxRunning string   // --max-running, ENCLAVE_MAX_RUNNING
	MaxWaiting string   // --max-waiting, ENCLAVE_MAX_WAITING
	Quotas     []string // --quota, ENCLAVE_QUOTA (separated by spaces)
	Drain      string   // --drain, ENCLAVE_DRAIN
	Overcommit string   // --memory-overcommit, ENCLAVE_MEMORY_OVERCOMMIT
	Gateway    string   // --gateway-memory, ENCLAVE_GATEWAY_MEMORY
}

func admissionDefaults(env func(string) string) admissionOptions {
	return admissionOptions{
		MaxRunning: env("ENCLAVE_MAX_RUNNING"), MaxWaiting: env("ENCLAVE_MAX_WAITING"),
		Quotas: strings.Fields(env("ENCLAVE_QUOTA")), Drain: env("ENCLAVE_DRAIN"),
		Overcommit: env("ENCLAVE_MEMORY_OVERCOMMIT"),
		Gateway:    env("ENCLAVE_GATEWAY_MEMORY"),
	}
}

func (o *admissionOptions) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&o.MaxRunning, "max-running", o.MaxRunning, "run this `MANY` sessions at once; others wait (ENCLAVE_MAX_RUNNING; default 128)")
	f.StringVar(&o.MaxWaiting, "max-waiting", o.MaxWaiting, "let this `MANY` sessions wait; more are refused (ENCLAVE_MAX_WAITING; default 10000)")
	f.StringArrayVar(&o.Quotas, "quota", o.Quotas, "`QUOTA` of an organisation, ORG:concurrent=4,perMinute=60,cpuSecondsPerDay=36000,waiting=100,storageMb=10000, or of all others, default:...; "+
		"perMinute=unlimited is no bound; repeatable (ENCLAVE_QUOTA, separated by spaces)")
	f.StringVar(&o.Overcommit, "memory-overcommit", o.Overcommit, "admit sessions up to this many `TIMES` the memory that the host has for them, from 0.1 to 100 (ENCLAVE_MEMORY_OVERCOMMIT; default 1)")
	f.StringVar(&o.Drain, "drain", o.Drain, "when told to end, let sessions run on for this `DURATION` (ENCLAVE_DRAIN; default 30s)")
	f.StringVar(&o.Gateway, "gateway-memory", o.Gateway, "memory limit of the gateway process in `MIB`; what each session may take of it follows from --max-running (ENCLAVE_GATEWAY_MEMORY; default what they need at most, within three quarters of this host's)")
}

func (o *admissionOptions) validate() error {
	_, err := o.parse()
	if err == nil {
		_, err = o.drain()
	}
	return err
}

// drain is how long sessions run on when the control plane is told to end.
func (o *admissionOptions) drain() (time.Duration, error) {
	if o.Drain == "" {
		return 30 * time.Second, nil
	}
	d, err := time.ParseDuration(o.Drain)
	if err != nil || d < 0 || d > 24*time.Hour {
		return 0, fmt.Errorf("--drain %q is not a duration from 0s to 24h, such as 30s or 2m", o.Drain)
	}
	return d, nil
}

// parse understands o, or says in words what it does not.
func (o *admissionOptions) parse() (server.Admission, error) {
	a := server.Admission{Special: map[string]control.Quotas{}}
	for _, n := range []struct {
		flag, text string
		to         *int
	}{{"--max-running", o.MaxRunning, &a.Running}, {"--max-waiting", o.MaxWaiting, &a.Waiting}} {
		if n.text == "" {
			continue
		}
		v, err := server.Positive(n.text)
		if err != nil {
			return server.Admission{}, fmt.Errorf("%s %q %w", n.flag, n.text, err)
		}
		*n.to = int(v)
	}
	if o.Overcommit != "" {
		times, err := strconv.ParseFloat(o.Overcommit, 64)
		if err != nil || !(times >= 0.1 && times <= 100) {
			return server.Admission{}, fmt.Errorf("--memory-overcommit %q is not a number from 0.1 to 100", o.Overcommit)
		}
		a.Overcommit = times
	}
	if o.Gateway != "" {
		v, err := server.Positive(o.Gateway)
		if err != nil {
			return server.Admission{}, fmt.Errorf("--gateway-memory %q %w", o.Gateway, err)
		}
		if v > 1<<30 {
			return server.Admission{}, fmt.Errorf("--gateway-memory %d is more MiB than any host has", v)
		}
		a.GatewayMemory = int64(v) << 20
		if err := server.EnoughMemory(a.Places(), a.GatewayMemory); err != nil {
			return server.Admission{}, err
		}
	}
	var err error
	if a.Usual, a.Special, err = server.ParseQuotas(o.Quotas); err != nil {
		return server.Admission{}, fmt.Errorf("--quota %w", err)
	}
	return a, nil
}
