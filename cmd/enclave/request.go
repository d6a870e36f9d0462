package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/request"
	"github.com/enclave-run/enclave/internal/ui"
)

// request turns what `enclave run` was given into a request. What the server
// would refuse after an upload is refused here in the words of the command line.
func (p *program) request(f runFlags, args []string) (enclave.SessionRequest, error) {
	none := enclave.SessionRequest{}
	code, name, err := p.code(f, args)
	if err != nil {
		return none, err
	}
	req := enclave.SessionRequest{Code: code, Language: f.language, WebhookURL: f.webhookURL, MinIsolation: f.minIsolation, IdempotencyKey: randomKey()}
	if req.Language == "" {
		req.Language = guessLanguage(name)
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
	if req.Files, err = readFiles(f.files); err != nil {
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

// code returns the code to run and the name of the script it is from, if any.
func (p *program) code(f runFlags, args []string) (code, name string, err error) {
	var raw []byte
	switch {
	case f.codeSet && len(args) > 0:
		return "", "", errors.New("give -c CODE or a script, not both")
	case f.codeSet:
		raw = []byte(f.code)
	case len(args) == 0 && ui.Typed(p.in):
		return "", "", errors.New("nothing to run: give -c CODE, a script, or code on standard input; see `enclave run --help`")
	case len(args) == 0 || args[0] == "-":
		if raw, err = io.ReadAll(io.LimitReader(p.in, request.MaxCode+1)); err != nil {
			return "", "", fmt.Errorf("read the code from standard input: %w", err)
		}
	default:
		name = args[0]
		if raw, err = readFile(name, request.MaxCode); err != nil {
			return "", "", fmt.Errorf("read the script: %w", err)
		}
	}
	switch {
	case len(raw) > request.MaxCode:
		return "", "", fmt.Errorf("the code has more than %d MiB; put data in files with --file", request.MaxCode>>20)
	case len(bytes.TrimSpace(raw)) == 0:
		return "", "", errors.New("the code is empty")
	case bytes.IndexByte(raw, 0) >= 0:
		return "", "", errors.New("the code has a NUL byte: it is not source code")
	case !utf8.Valid(raw):
		return "", "", errors.New("the code is not UTF-8")
	}
	return string(raw), name, nil
}

func guessLanguage(name string) string {
	switch strings.ToLower(filepath.Ext(name)) {
	case ".js", ".mjs", ".cjs":
		return "node"
	case ".sh", ".bash":
		return "bash"
	}
	return "python"
}

// readFiles reads what --file names: LOCAL:PATH, a local file and its path
// below /work, or LOCAL alone, which keeps its name.
func readFiles(specs []string) (map[string]string, error) {
	files := make(map[string]string, len(specs))
	total := 0
	for _, spec := range specs {
		local, inside, ok := strings.Cut(spec, ":")
		if !ok {
			inside = filepath.Base(local)
		}
		inside, ok = request.WorkPath(inside)
		if local == "" || !ok {
			return nil, fmt.Errorf("--file %q is not LOCAL:PATH with a path below /work", spec)
		}
		if _, twice := files[inside]; twice {
			return nil, fmt.Errorf("--file names /work/%s twice", inside)
		}
		raw, err := readFile(local, request.MaxFileBytes)
		if err != nil {
			return nil, fmt.Errorf("read --file: %w", err)
		}
		if !utf8.Valid(raw) {
			return nil, fmt.Errorf("--file %s is not UTF-8 text: encode it, for example with base64", local)
		}
		if total += len(raw); total > request.MaxFileBytes {
			return nil, fmt.Errorf("the files have more than %d MiB together", request.MaxFileBytes>>20)
		}
		files[inside] = string(raw)
	}
	if len(files) == 0 {
		return nil, nil
	}
	return files, nil
}

// readFile reads a file, but never more than one byte beyond limit.
func readFile(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit+1))
}
