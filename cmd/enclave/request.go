package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/request"
	"github.com/enclave-run/enclave/internal/ui"
)

// request turns what `enclave run` was given into a request. What the server
// would refuse after an upload is refused here in the words of the command line.
func (p *program) request(f runFlags, args []string) (enclave.SessionRequest, error) {
	none := enclave.SessionRequest{}
	var inline *string
	if f.codeSet {
		inline = &f.code
	}
	code, name, err := ui.ReadCode(p.in, inline, args)
	if err != nil {
		return none, err
	}
	req := enclave.SessionRequest{Code: code, Language: f.language, WebhookURL: f.webhookURL, MinIsolation: f.minIsolation, IdempotencyKey: rand.Text()}
	if req.Language == "" {
		req.Language = ui.GuessLanguage(name)
	}
	if !slices.Contains(request.Languages(), req.Language) {
		return none, fmt.Errorf("language %q is not one of %s", req.Language, strings.Join(request.Languages(), ", "))
	}
	if len(f.allow) > 0 {
		req.Egress = enclave.Egress{Mode: enclave.Allowlist, Allow: f.allow}
		for _, rule := range f.allow {
			if strings.TrimSpace(rule) == "" {
				return none, errors.New("--allow is empty: name a host, such as --allow api.example.com")
			}
		}
	}
	if req.Limits, err = f.limits(); err != nil {
		return none, err
	}
	if req.Files, err = ui.ReadFiles(f.files); err != nil {
		return none, err
	}
	for _, l := range f.labels {
		k, v, ok := strings.Cut(l, "=")
		if !ok || k == "" {
			return none, fmt.Errorf("--label %q is not KEY=VALUE", l)
		}
		if req.Labels == nil {
			req.Labels = map[string]string{}
		}
		req.Labels[k] = v
	}
	return req, nil
}

// limits returns the limits that were named. Zero is refused here, because in a
// request it would mean the default.
func (f *runFlags) limits() (enclave.Limits, error) {
	var l enclave.Limits
	var errs []error
	set := func(flag string, to *int64, v *int64, err error) {
		switch {
		case err != nil:
			errs = append(errs, err)
		case v == nil:
		case *v <= 0:
			errs = append(errs, fmt.Errorf("%s %d is not positive; leave it out for the default", flag, *v))
		default:
			*to = *v
		}
	}
	if f.pidsSet {
		set("--pids", &l.PidsLimit, &f.pids, nil)
	}
	memory, err := f.memory.In("--memory", 1<<20)
	set("--memory", &l.MemoryMB, memory, err)
	disk, err := f.disk.In("--disk", 1<<20)
	set("--disk", &l.DiskMB, disk, err)
	output, err := f.output.In("--output", 1)
	set("--output", &l.OutputBytes, output, err)
	egr, err := f.egr.In("--egress", 1)
	set("--egress", &l.EgressBytes, egr, err)
	set("--cpu-seconds", &l.CPUSeconds, f.cpuSeconds.Value(), nil)
	set("--timeout", &l.WallSeconds, f.timeout.Value(), nil)
	set("--cpus", &l.CPUMillis, f.cpus.Value(), nil)
	return l, errors.Join(errs...)
}
