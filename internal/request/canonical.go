package request

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
)

// version2 begins each hash of the second version of the encoding, RFC 8785, which
// every language can compute. The first, the JSON that Go made of a struct, has no
// prefix; records, certificates and idempotency keys of it are compared in it.
const version2 = "2:"

// Hash identifies what r asks for, whatever its idempotency key: "2:" and the
// SHA-256, in hex, of what Encode writes. It is public, in session_created.
func (r Request) Hash() string {
	h := sha256.New()
	w := bufio.NewWriterSize(h, 32<<10)
	r.Encode(w) // neither writer fails
	w.Flush()
	return version2 + hex.EncodeToString(h.Sum(nil))
}

// Matches reports whether recorded is the hash of r, in the version that
// recorded has.
func (r Request) Matches(recorded string) bool {
	if strings.HasPrefix(recorded, version2) {
		return recorded == r.Hash()
	}
	return recorded == r.hash1()
}

// hash1 is the hash of version 1. It knows the fields that requests had then.
func (r Request) hash1() string {
	type limits struct {
		Pids, MemoryMB, CPUMillis, CPUSeconds, WallSeconds, DiskMB, OutputBytes, EgressBytes *int64
	}
	type egress struct {
		Mode  string   `json:"mode"`
		Allow []string `json:"allow"`
	}
	b, err := json.Marshal(struct {
		Code                      string
		Argv                      []string
		Language                  string
		Egress                    egress
		Limits                    limits
		Files, Labels             map[string]string
		MinIsolation, Idempotency string
		WebhookURL                string `json:",omitempty"`
	}{
		Code: r.Code, Argv: r.Argv, Language: r.Language, Egress: egress(r.Egress), Limits: limits(r.Limits),
		Files: r.Files, Labels: r.Labels, MinIsolation: r.MinIsolation, WebhookURL: r.WebhookURL,
	})
	if err != nil {
		panic(fmt.Sprintf("encode a request: %v", err)) // strings, numbers and maps of strings have no errors
	}
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// Encode writes the canonical form of r: its JSON by the scheme of RFC 8785 (no
// white space, members sorted by the UTF-16 code units of their names, the fewest
// escapes), without the idempotency key and without members that are empty, so
// that a field which is added later changes no hash. What r leaves to a default is
// left out, whatever the default is.
func (r Request) Encode(w io.Writer) error {
	e := encoder{w: w}
	e.object(member{"argv", e.list(r.Argv)},
		member{"code", e.text(r.Code)},
		member{"egress", e.members(member{"allow", e.list(r.Egress.Allow)}, member{"mode", e.text(r.Egress.Mode)})},
		member{"files", e.table(r.Files)},
		member{"labels", e.table(r.Labels)},
		member{"language", e.text(r.Language)},
		member{"limits", e.members(
			member{"cpuMillis", e.number(r.Limits.CPUMillis)},
			member{"cpuSeconds", e.number(r.Limits.CPUSeconds)},
			member{"diskMb", e.number(r.Limits.DiskMB)},
			member{"egressBytes", e.number(r.Limits.EgressBytes)},
			member{"memoryMb", e.number(r.Limits.MemoryMB)},
			member{"outputBytes", e.number(r.Limits.OutputBytes)},
			member{"pidsLimit", e.number(r.Limits.Pids)},
			member{"wallSeconds", e.number(r.Limits.WallSeconds)})},
		member{"minIsolation", e.text(r.MinIsolation)},
		member{"webhookUrl", e.text(r.WebhookURL)})
	return e.err
}

// An encoder writes JSON and keeps its first error.
type encoder struct {
	w   io.Writer
	err error
}

// A member of an object: its name, and what writes its value; nil if it is empty.
type member struct {
	name  string
	value func()
}

func (e *encoder) put(s string) {
	if e.err == nil {
		_, e.err = io.WriteString(e.w, s)
	}
}

// object writes members, which are in order, but for the empty ones.
func (e *encoder) object(members ...member) {
	between := "{"
	for _, m := range members {
		if m.value == nil {
			continue
		}
		e.put(between)
		between = ","
		e.quote(m.name)
		e.put(":")
		m.value()
	}
	if between == "{" {
		e.put("{")
	}
	e.put("}")
}

func (e *encoder) members(members ...member) func() {
	if !slices.ContainsFunc(members, func(m member) bool { return m.value != nil }) {
		return nil
	}
	return func() { e.object(members...) }
}

// table writes a map, whose values may be empty: an empty file is a file.
func (e *encoder) table(t map[string]string) func() {
	if len(t) == 0 {
		return nil
	}
	return func() {
		var members []member
		for _, name := range slices.SortedFunc(maps.Keys(t), compareUTF16) {
			members = append(members, member{name, func() { e.quote(t[name]) }})
		}
		e.object(members...)
	}
}

func (e *encoder) list(l []string) func() {
	if len(l) == 0 {
		return nil
	}
	return func() {
		between := "["
		for _, s := range l {
			e.put(between)
			between = ","
			e.quote(s)
		}
		e.put("]")
	}
}

func (e *encoder) text(s string) func() {
	if s == "" {
		return nil
	}
	return func() { e.quote(s) }
}

func (e *encoder) number(n *int64) func() {
	if n == nil {
		return nil
	}
	return func() { e.put(strconv.FormatInt(*n, 10)) }
}

// quote writes a string with the escapes of RFC 8785, section 3.2.2.2: of the
// quotation mark, the backslash and what is below the space, and of nothing else.
func (e *encoder) quote(s string) {
	e.put(`"`)
	from := 0
	for i := range len(s) {
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		e.put(s[from:i])
		from = i + 1
		if short := strings.IndexByte("\"\\\b\f\n\r\t", c); short >= 0 {
			e.put(`\` + `"\bfnrt`[short:short+1])
		} else {
			e.put(fmt.Sprintf(`\u%04x`, c))
		}
	}
	e.put(s[from:])
	e.put(`"`)
}

// compareUTF16 orders names as RFC 8785, section 3.2.3, does.
func compareUTF16(a, b string) int {
	return slices.Compare(utf16.Encode([]rune(a)), utf16.Encode([]rune(b)))
}
