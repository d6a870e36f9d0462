// Package request is the one request for a session: its fields as the API spells
// them, their bounds and defaults, and the canonical encoding whose hash is on
// record. The API decodes into it, the control plane checks it, certificates hash
// it, and the command line reads its bounds. It is pure: it does no I/O, and what
// depends on an operator's configuration (ceilings apart, which are an argument)
// is not judged here.
package request

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/enclave-run/enclave/internal/session"
)

// A Request asks for a session. The zero value of each field but Code and Argv,
// of which one is required, stands for its default. A new field also goes into
// canonical.go: a test fails for one that the hash leaves out.
type Request struct {
	Code           string            `json:"code"`
	Argv           []string          `json:"argv"`
	Language       string            `json:"language"` // of Code; "" is python
	Egress         session.Egress    `json:"egress"`
	Limits         Limits            `json:"limits"`
	Files          map[string]string `json:"files"` // path below /work → content
	Labels         map[string]string `json:"labels"`
	WebhookURL     string            `json:"webhookUrl"`   // called when the session ends; never shown
	MinIsolation   string            `json:"minIsolation"` // "" is none
	IdempotencyKey string            `json:"idempotencyKey"`
}

// Limits are the limits that a client named; nil is the default. Zero and negative
// values are refused, as is what exceeds the operator's ceiling.
type Limits struct {
	Pids        *int64 `json:"pidsLimit"`
	MemoryMB    *int64 `json:"memoryMb"`
	CPUMillis   *int64 `json:"cpuMillis"`
	CPUSeconds  *int64 `json:"cpuSeconds"`
	WallSeconds *int64 `json:"wallSeconds"`
	DiskMB      *int64 `json:"diskMb"`
	OutputBytes *int64 `json:"outputBytes"`
	EgressBytes *int64 `json:"egressBytes"`
}

// Bounds of a request's fields. Sizes are in bytes.
const (
	MaxCode      = 10 << 20
	MaxFiles     = 1000
	MaxFileBytes = 10 << 20  // all files together
	maxFileName  = 255       // between two slashes: NAME_MAX of limits.h
	maxPath      = 1024      // of a file, relative to /work
	maxArgs      = 1000      // of Argv
	maxArgBytes  = 128 << 10 // one argument: MAX_ARG_STRLEN of execve(2)
	maxLabels    = 64
	maxLabel     = 256 // a label's key or value, and an idempotency key
)

// languages are those of Code; the first is the default.
var languages = []string{"python", "node", "bash"}

// Languages returns the languages that Code may have; the first is the default.
func Languages() []string { return slices.Clone(languages) }

// defaults are the limits of a session that names none.
var defaults = session.Limits{
	Pids: 256, MemoryMB: 512, CPUMillis: 1000, CPUSeconds: 60,
	WallSeconds: 300, DiskMB: 512, OutputBytes: 10_000_000, EgressBytes: 100_000_000,
}

// DefaultLimits returns the limits of a session that names none, where no ceiling
// lowers them.
func DefaultLimits() session.Limits { return defaults }

// DefaultCeilings returns what a session may ask for at most where the operator
// says nothing.
func DefaultCeilings() session.Limits {
	return session.Limits{
		Pids: 4096, MemoryMB: 16384, CPUMillis: 16000, CPUSeconds: 24 * 3600,
		WallSeconds: 24 * 3600, DiskMB: 16384, OutputBytes: 100_000_000, EgressBytes: 100_000_000_000,
	}
}

// A FieldError says which field was refused, and why, in words for the client.
type FieldError struct {
	Field  string // as in the API: "limits.pidsLimit"
	Detail string
}

func (e *FieldError) Error() string { return e.Field + ": " + e.Detail }

// Refuse returns a *FieldError.
func Refuse(field, format string, args ...any) error {
	return &FieldError{field, fmt.Sprintf(format, args...)}
}

// Check returns the language of the session and its work, with each file under its
// canonical name, or a *FieldError for the first field that no control plane takes.
// What a control plane's configuration decides (Limits, the rules of Egress,
// WebhookURL, MinIsolation) it leaves to others.
func (r Request) Check() (language string, w session.Work, err error) {
	if language, err = r.language(); err != nil {
		return "", session.Work{}, err
	}
	if w, err = r.work(); err != nil {
		return "", session.Work{}, err
	}
	if err := checkLabels(r.Labels); err != nil {
		return "", session.Work{}, err
	}
	if len(r.IdempotencyKey) > maxLabel || !printable(r.IdempotencyKey) {
		return "", session.Work{}, Refuse("idempotencyKey", "at most %d printable characters", maxLabel)
	}
	return language, w, nil
}

func (r Request) language() (string, error) {
	switch {
	case len(r.Argv) > 0 && r.Language != "":
		return "", Refuse("language", "goes with code, not with argv")
	case len(r.Argv) > 0:
		return "", nil
	case r.Language == "":
		return languages[0], nil
	case !slices.Contains(languages, r.Language):
		return "", Refuse("language", "%q is not one of %s", r.Language, strings.Join(languages, ", "))
	}
	return r.Language, nil
}

// Fill gives each limit that l leaves out its default, which a lower ceiling
// lowers, and refuses what is not positive or exceeds its ceiling.
func (l Limits) Fill(ceilings session.Limits) (session.Limits, error) {
	full := defaults
	for _, f := range []struct {
		name    string
		asked   *int64
		limit   *int64
		ceiling int64
	}{
		{"pidsLimit", l.Pids, &full.Pids, ceilings.Pids},
		{"memoryMb", l.MemoryMB, &full.MemoryMB, ceilings.MemoryMB},
		{"cpuMillis", l.CPUMillis, &full.CPUMillis, ceilings.CPUMillis},
		{"cpuSeconds", l.CPUSeconds, &full.CPUSeconds, ceilings.CPUSeconds},
		{"wallSeconds", l.WallSeconds, &full.WallSeconds, ceilings.WallSeconds},
		{"diskMb", l.DiskMB, &full.DiskMB, ceilings.DiskMB},
		{"outputBytes", l.OutputBytes, &full.OutputBytes, ceilings.OutputBytes},
		{"egressBytes", l.EgressBytes, &full.EgressBytes, ceilings.EgressBytes},
	} {
		switch {
		case f.asked == nil:
			*f.limit = min(*f.limit, f.ceiling)
		case *f.asked <= 0:
			return session.Limits{}, Refuse("limits."+f.name, "%d is not positive; leave the field out for the default of %d", *f.asked, min(*f.limit, f.ceiling))
		case *f.asked > f.ceiling:
			return session.Limits{}, Refuse("limits."+f.name, "%d is above this control plane's ceiling of %d", *f.asked, f.ceiling)
		default:
			*f.limit = *f.asked
		}
	}
	return full, nil
}

func (r Request) work() (session.Work, error) {
	switch {
	case len(r.Argv) > 0 && r.Code != "":
		return session.Work{}, Refuse("code", "goes without argv; give one of the two")
	case len(r.Argv) == 0 && r.Code == "":
		return session.Work{}, Refuse("code", "is required")
	case len(r.Code) > MaxCode:
		return session.Work{}, Refuse("code", "%d bytes are more than the %d MiB that code may have; put data in files", len(r.Code), MaxCode>>20)
	case strings.ContainsRune(r.Code, 0):
		return session.Work{}, Refuse("code", "contains a NUL byte")
	case !utf8.ValidString(r.Code):
		return session.Work{}, Refuse("code", "is not UTF-8")
	case len(r.Argv) > maxArgs:
		return session.Work{}, Refuse("argv", "%d arguments are more than %d", len(r.Argv), maxArgs)
	}
	for i, a := range r.Argv {
		if len(a) > maxArgBytes || strings.ContainsRune(a, 0) || i == 0 && a == "" {
			return session.Work{}, Refuse(fmt.Sprintf("argv[%d]", i), "is empty, contains a NUL byte or is longer than %d KiB", maxArgBytes>>10)
		}
	}
	files, err := workFiles(r.Files)
	return session.Work{Code: r.Code, Argv: r.Argv, Files: files}, err
}

// workFiles returns files under their canonical names, relative to /work.
func workFiles(files map[string]string) (map[string]string, error) {
	if len(files) > MaxFiles {
		return nil, Refuse("files", "%d files are more than %d", len(files), MaxFiles)
	}
	var total int
	out := make(map[string]string, len(files))
	for name, content := range files {
		rel, ok := WorkPath(name)
		if !ok || len(rel) > maxPath || !printable(rel) {
			return nil, Refuse("files", "%q is not a path below /work in its shortest form", name)
		}
		if slices.ContainsFunc(strings.Split(rel, "/"), func(part string) bool { return len(part) > maxFileName }) {
			return nil, Refuse("files", "%.40q... has a name of more than %d bytes", name, maxFileName)
		}
		if _, twice := out[rel]; twice {
			return nil, Refuse("files", "%q is named twice", rel)
		}
		if total += len(content); total > MaxFileBytes {
			return nil, Refuse("files", "are more than %d MiB together", MaxFileBytes>>20)
		}
		out[rel] = content
	}
	for name := range out {
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			if _, isFile := out[dir]; isFile {
				return nil, Refuse("files", "%q is both a file and a directory", dir)
			}
		}
	}
	return out, nil
}

// WorkPath returns name, which may begin with /work/, relative to /work. It reports
// false unless that is a path below /work in its shortest form.
func WorkPath(name string) (string, bool) {
	rel := strings.TrimPrefix(name, "/work/")
	ok := rel != "" && rel != "." && rel != ".." && !strings.HasPrefix(rel, "../") && !path.IsAbs(rel) && path.Clean(rel) == rel
	return rel, ok
}

func checkLabels(l map[string]string) error {
	if len(l) > maxLabels {
		return Refuse("labels", "%d labels are more than %d", len(l), maxLabels)
	}
	for k, v := range l {
		if k == "" || len(k) > maxLabel || len(v) > maxLabel || !printable(k) || !printable(v) {
			return Refuse("labels", "%q: keys and values have at most %d printable characters, keys at least one", k, maxLabel)
		}
	}
	return nil
}

// printable reports whether s is UTF-8 without control characters, so that it
// can be shown as it is.
func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsGraphic(r) })
}
