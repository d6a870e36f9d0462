package control

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/egress"
	"github.com/enclave-run/enclave/internal/session"
)

// defaults are the limits of a session that names none.
var defaults = session.Limits{
	Pids: 256, MemoryMB: 512, CPUMillis: 1000, CPUSeconds: 60,
	WallSeconds: 300, DiskMB: 512, OutputBytes: 10_000_000, EgressBytes: 100_000_000,
}

// DefaultCeilings returns what a session may ask for at most where the operator
// says nothing.
func DefaultCeilings() session.Limits {
	return session.Limits{
		Pids: 4096, MemoryMB: 16384, CPUMillis: 16000, CPUSeconds: 24 * 3600,
		WallSeconds: 24 * 3600, DiskMB: 16384, OutputBytes: 100_000_000, EgressBytes: 100_000_000_000,
	}
}

const (
	maxCode      = 10 << 20 // bytes of code
	maxFiles     = 1000
	maxFileBytes = 10 << 20 // all files together
	maxFileName  = 255      // bytes between two slashes: NAME_MAX of limits.h
	maxArgs      = 1000
	maxArgBytes  = 128 << 10 // one argument: MAX_ARG_STRLEN of execve(2)
	maxLabels    = 64
	maxLabel     = 256 // bytes of a label's key or value
)

var languages = []string{"python", "node", "bash"}

// A plan is a request that was understood, with every default filled in.
type plan struct {
	language string
	limits   session.Limits
	egress   session.Egress
	policy   egress.Policy
	work     session.Work
	webhook  string
	hash     string
	bytes    int64 // what the store takes for it
}

// understand turns r into a plan or says which field it does not accept.
func (p *Plane) understand(r Request) (plan, error) {
	var pl plan
	var err error
	if pl.language, err = language(r); err != nil {
		return plan{}, err
	}
	if pl.limits, err = fill(r.Limits, p.ceilings); err != nil {
		return plan{}, err
	}
	if err := p.fits(pl.limits); err != nil {
		return plan{}, err
	}
	if pl.work, err = work(r); err != nil {
		return plan{}, err
	}
	if err := labels(r.Labels); err != nil {
		return plan{}, err
	}
	if len(r.Idempotency) > maxLabel || !printable(r.Idempotency) {
		return plan{}, invalid("idempotencyKey", "at most %d printable characters", maxLabel)
	}
	if pl.webhook, err = p.understandWebhook(r.WebhookURL); err != nil {
		return plan{}, err
	}
	if err := p.isolated(r.MinIsolation); err != nil {
		return plan{}, err
	}
	pl.egress = session.Egress{Mode: r.Egress.Mode, Allow: append([]string{}, r.Egress.Allow...)}
	if pl.egress.Mode == "" {
		pl.egress.Mode = "deny_all"
	}
	pl.policy, err = egress.Parse(pl.egress.Mode, pl.egress.Allow, p.table)
	var rule *egress.RuleError
	switch {
	case errors.As(err, &rule) && rule.Index >= 0:
		return plan{}, invalid(fmt.Sprintf("egress.allow[%d]", rule.Index), "%s", rule.Detail)
	case err != nil:
		return plan{}, invalid("egress", "%v", err)
	}
	pl.bytes = requestBytes(r)
	pl.hash, err = digest(r)
	return pl, err
}

func language(r Request) (string, error) {
	if len(r.Argv) > 0 {
		if r.Language != "" {
			return "", invalid("language", "goes with code, not with argv")
		}
		return "", nil
	}
	if r.Language == "" {
		return "python", nil
	}
	if !slices.Contains(languages, r.Language) {
		return "", invalid("language", "%q is not one of %s", r.Language, strings.Join(languages, ", "))
	}
	return r.Language, nil
}

// fill gives each limit that r leaves out its default, which a lower ceiling
// lowers, and refuses what is not positive or exceeds its ceiling.
func fill(r LimitsRequest, ceilings session.Limits) (session.Limits, error) {
	l := defaults
	for _, f := range []struct {
		name    string
		asked   *int64
		limit   *int64
		ceiling int64
	}{
		{"pidsLimit", r.Pids, &l.Pids, ceilings.Pids},
		{"memoryMb", r.MemoryMB, &l.MemoryMB, ceilings.MemoryMB},
		{"cpuMillis", r.CPUMillis, &l.CPUMillis, ceilings.CPUMillis},
		{"cpuSeconds", r.CPUSeconds, &l.CPUSeconds, ceilings.CPUSeconds},
		{"wallSeconds", r.WallSeconds, &l.WallSeconds, ceilings.WallSeconds},
		{"diskMb", r.DiskMB, &l.DiskMB, ceilings.DiskMB},
		{"outputBytes", r.OutputBytes, &l.OutputBytes, ceilings.OutputBytes},
		{"egressBytes", r.EgressBytes, &l.EgressBytes, ceilings.EgressBytes},
	} {
		switch {
		case f.asked == nil:
			*f.limit = min(*f.limit, f.ceiling)
		case *f.asked <= 0:
			return session.Limits{}, invalid("limits."+f.name, "%d is not positive; leave the field out for the default of %d", *f.asked, min(*f.limit, f.ceiling))
		case *f.asked > f.ceiling:
			return session.Limits{}, invalid("limits."+f.name, "%d is above this control plane's ceiling of %d", *f.asked, f.ceiling)
		default:
			*f.limit = *f.asked
		}
	}
	return l, nil
}

func work(r Request) (session.Work, error) {
	switch {
	case len(r.Argv) > 0 && r.Code != "":
		return session.Work{}, invalid("code", "goes without argv; give one of the two")
	case len(r.Argv) == 0 && r.Code == "":
		return session.Work{}, invalid("code", "is required")
	case len(r.Code) > maxCode:
		return session.Work{}, invalid("code", "%d bytes are more than the %d MiB that code may have; put data in files", len(r.Code), maxCode>>20)
	case strings.ContainsRune(r.Code, 0):
		return session.Work{}, invalid("code", "contains a NUL byte")
	case !utf8.ValidString(r.Code):
		return session.Work{}, invalid("code", "is not UTF-8")
	case len(r.Argv) > maxArgs:
		return session.Work{}, invalid("argv", "%d arguments are more than %d", len(r.Argv), maxArgs)
	}
	for i, a := range r.Argv {
		if len(a) > maxArgBytes || strings.ContainsRune(a, 0) || i == 0 && a == "" {
			return session.Work{}, invalid(fmt.Sprintf("argv[%d]", i), "is empty, contains a NUL byte or is longer than %d KiB", maxArgBytes>>10)
		}
	}
	files, err := workFiles(r.Files)
	return session.Work{Code: r.Code, Argv: r.Argv, Files: files}, err
}

// workFiles returns files under their canonical names, relative to /work.
func workFiles(files map[string]string) (map[string]string, error) {
	if len(files) > maxFiles {
		return nil, invalid("files", "%d files are more than %d", len(files), maxFiles)
	}
	var total int
	out := make(map[string]string, len(files))
	for name, content := range files {
		rel := strings.TrimPrefix(name, "/work/")
		if rel == "" || rel == "." || path.IsAbs(rel) || path.Clean(rel) != rel || strings.HasPrefix(rel, "../") || rel == ".." ||
			len(rel) > 1024 || !printable(rel) {
			return nil, invalid("files", "%q is not a path below /work in its shortest form", name)
		}
		if slices.ContainsFunc(strings.Split(rel, "/"), func(part string) bool { return len(part) > maxFileName }) {
			return nil, invalid("files", "%.40q... has a name of more than %d bytes", name, maxFileName)
		}
		if _, twice := out[rel]; twice {
			return nil, invalid("files", "%q is named twice", rel)
		}
		if total += len(content); total > maxFileBytes {
			return nil, invalid("files", "are more than %d MiB together", maxFileBytes>>20)
		}
		out[rel] = content
	}
	for name := range out {
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			if _, isFile := out[dir]; isFile {
				return nil, invalid("files", "%q is both a file and a directory", dir)
			}
		}
	}
	return out, nil
}

func labels(l map[string]string) error {
	if len(l) > maxLabels {
		return invalid("labels", "%d labels are more than %d", len(l), maxLabels)
	}
	for k, v := range l {
		if k == "" || len(k) > maxLabel || len(v) > maxLabel || !printable(k) || !printable(v) {
			return invalid("labels", "%q: keys and values have at most %d printable characters, keys at least one", k, maxLabel)
		}
	}
	return nil
}

// understandWebhook returns raw in canonical form.
func (p *Plane) understandWebhook(raw string) (string, error) {
	if raw == "" {
		return "", nil
	}
	if p.webhook == nil {
		return "", invalid("webhookUrl", "this control plane sends no webhooks")
	}
	u, err := p.webhook(raw)
	if err != nil {
		return "", invalid("webhookUrl", "%v", err)
	}
	return u, nil
}

// printable reports whether s is UTF-8 without control characters, so that it
// can be shown as it is.
func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsGraphic(r) })
}

func (p *Plane) isolated(minimum string) error {
	if minimum == "" {
		return nil
	}
	want, err := backend.ParseIsolation(minimum)
	if err != nil {
		return invalid("minIsolation", "%v", err)
	}
	if have := p.backend.Info().Isolation; have < want {
		return fmt.Errorf("%w: %s is below %s", ErrIsolation, have, want)
	}
	return nil
}

// digest identifies what r asks for, whatever its idempotency key.
func digest(r Request) (string, error) {
	r.Idempotency = ""
	b, err := json.Marshal(r) // maps are sorted by key
	if err != nil {
		return "", fmt.Errorf("hash request: %w", err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(b)), nil
}
