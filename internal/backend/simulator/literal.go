package simulator

import (
	"encoding/json"
	"math"
	"regexp"
	"strconv"
	"strings"

	"github.com/enclave-run/enclave/internal/wire"
)

// A value is what a literal says: text, int64, float64, bool, none, list or
// dict; or a prefix, *thing or *raised that a name stands for. nil is not known.
type value any

type (
	none struct{}
	list []value
	dict []pair
	pair struct{ key, value value }

	// A prefix is a string of which only the start is known.
	prefix string

	// A text is a string, or bytes if it is raw, n times over. A block of memory
	// is one too, so that its size costs nothing.
	text struct {
		s   string
		n   int64
		raw bool
	}
)

// size returns how long t is.
func (t text) size() int64 { return times(int64(len(t.s)), t.n) }

// first returns the first bytes of t, at most most and one repeat more.
func (t text) first(most int64) string {
	if len(t.s) == 0 || t.n <= 0 {
		return ""
	}
	return strings.Repeat(t.s, int(min(t.n, most/int64(len(t.s))+1)))
}

// times multiplies what is not negative, and stops at the largest number.
func times(a, b int64) int64 {
	if a > 0 && b > math.MaxInt64/a {
		return math.MaxInt64
	}
	return a * b
}

// literal reads s as a literal of Python: strings, numbers, True, False, None,
// tuples, lists and dictionaries of them, the names whose values are known, and
// +, *, ** and << between them. Of all that is computed it knows two forms,
// sum(range(N)) and sum(i * i for i in range(N)), since a workload that is to
// be trusted with an answer needs one. It returns nil for everything else.
func literal(s string, known map[string]value) value {
	r := &reader{s: s, known: known}
	v := r.expr(0)
	if r.space(); r.i < len(r.s) {
		return nil
	}
	return v
}

type reader struct {
	s     string
	i     int
	depth int
	ops   int
	known map[string]value
}

// maxOperators bounds what a literal is made of: each of many strings that are
// joined is copied again.
const maxOperators = 1000

func (r *reader) space() {
	for r.i < len(r.s) && strings.IndexByte(" \t\r\n", r.s[r.i]) >= 0 {
		r.i++
	}
}

func (r *reader) take(s string) bool {
	if r.space(); strings.HasPrefix(r.s[r.i:], s) {
		r.i += len(s)
		return true
	}
	return false
}

func (r *reader) expr(least int) value {
	left := r.atom()
	for left != nil {
		r.space()
		op, level := "", 0
		for n, o := range [...]string{"<<", "+", "**", "*"} {
			if strings.HasPrefix(r.s[r.i:], o) {
				op, level = o, [...]int{1, 2, 4, 3}[n]
				break
			}
		}
		if op == "" || level <= least {
			return left
		}
		if r.ops++; r.ops > maxOperators {
			return nil
		}
		r.i += len(op)
		left = operate(op, left, r.expr(level))
	}
	return nil
}

func operate(op string, a, b value) value {
	x, xi := a.(int64)
	y, yi := b.(int64)
	if !xi && yi && op == "*" {
		switch a := a.(type) {
		case text:
			return text{a.s, times(a.n, max(y, 0)), a.raw}
		case list:
			return text{"........", times(int64(len(a)), max(y, 0)), true}
		}
	}
	if s, ok := a.(text); ok && op == "+" {
		t, ok := b.(text)
		if ok && s.raw == t.raw && s.size() < maxStatement && t.size() < maxStatement {
			return text{s.first(maxStatement) + t.first(maxStatement), 1, s.raw}
		}
	}
	if !xi || !yi {
		return nil
	}
	switch { // a number that int64 does not hold is not known
	case op == "+" && (x+y > x) == (y > 0):
		return x + y
	case op == "*" && (x == 0 || x*y/x == y && !(x == -1 && y == math.MinInt64)):
		return x * y
	case op == "<<" && x >= 0 && y >= 0 && y < 63 && x<<y>>y == x:
		return x << y
	case op == "**" && y >= 0 && y < 64:
		v := value(int64(1))
		for range y {
			v = operate("*", v, x)
		}
		return v
	}
	return nil
}

var (
	intForm    = regexp.MustCompile(`^(?:0[xX][\da-fA-F_]+|0[oO][0-7_]+|0[bB][01_]+|[1-9][\d_]*|0)`)
	floatForm  = regexp.MustCompile(`^(?:\d[\d_]*\.[\d_]*(?:[eE][+-]?\d+)?|\.\d[\d_]*(?:[eE][+-]?\d+)?|\d[\d_]*[eE][+-]?\d+)`)
	prefixForm = regexp.MustCompile(`^(?:[rRuUbBfF]|[rR][bBfF]|[bBfF][rR])?["']`)
	nameForm   = regexp.MustCompile(`^[\pL_][\pL\pN_]*`)
	textOf     = regexp.MustCompile(`^str\(\s*([\pL_][\pL\pN_]*)\s*\)`)
	classOf    = regexp.MustCompile(`^type\(\s*([\pL_][\pL\pN_]*)\s*\)\.__name__\b`)
	sumRange   = regexp.MustCompile(`^sum\(\s*range\(\s*(\d{1,6})\s*\)\s*\)`)
	sumSquares = regexp.MustCompile(`^sum\(\s*(\w+)\s*\*\s*(\w+)\s+for\s+(\w+)\s+in\s+range\(\s*(\d{1,6})\s*\)\s*\)`)
)

func (r *reader) atom() value {
	r.depth++
	defer func() { r.depth-- }()
	if r.space(); r.i == len(r.s) || r.depth > 2*wire.MaxDepth {
		return nil
	}
	rest := r.s[r.i:]
	near := rest[:min(len(rest), 200)] // what the forms need to see
	switch c := rest[0]; {
	case c == '(' || c == '[':
		return r.items(c)
	case c == '{':
		return r.dict()
	case c == '-':
		r.i++
		switch v := r.expr(3).(type) {
		case int64:
			return -v
		case float64:
			return -v
		}
		return nil
	case prefixForm.MatchString(near):
		return r.strings()
	case floatForm.MatchString(near):
		s := floatForm.FindString(near)
		r.i += len(s)
		if f, err := strconv.ParseFloat(strings.ReplaceAll(s, "_", ""), 64); err == nil {
			return f
		}
		return nil
	case intForm.MatchString(near):
		s := intForm.FindString(near)
		r.i += len(s)
		if n, err := strconv.ParseInt(s, 0, 64); err == nil {
			return n
		}
		return nil
	}
	if v, n := computed(near, r.known); n > 0 {
		r.i += n
		return v
	}
	name := nameForm.FindString(near)
	r.i += len(name)
	if name == "" {
		return nil
	}
	switch name {
	case "True", "False":
		return name == "True"
	case "None":
		return none{}
	case "__name__":
		return text{"__main__", 1, false}
	}
	return r.known[name]
}

// computed reads the few calls whose value is known, and returns how long they
// are.
func computed(s string, known map[string]value) (value, int) {
	switch {
	case strings.HasPrefix(s, "sum("):
		if m := sumRange.FindStringSubmatch(s); m != nil {
			n, _ := strconv.ParseInt(m[1], 10, 64) // at most six digits
			return n * (n - 1) / 2, len(m[0])
		}
		if m := sumSquares.FindStringSubmatch(s); m != nil && m[1] == m[2] && m[2] == m[3] {
			n, _ := strconv.ParseInt(m[4], 10, 64)
			return (n - 1) * n * (2*n - 1) / 6, len(m[0])
		}
	case strings.HasPrefix(s, "str("):
		if m := textOf.FindStringSubmatch(s); m != nil {
			if t, ok := show(known[m[1]]); ok {
				return t, len(m[0])
			}
		}
	case strings.HasPrefix(s, "type("):
		if m := classOf.FindStringSubmatch(s); m != nil {
			if e, ok := known[m[1]].(*raised); ok {
				return text{e.class[strings.LastIndexByte(e.class, '.')+1:], 1, false}, len(m[0])
			}
		}
	}
	return nil, 0
}

// items reads a list or tuple, or what is in parentheses.
func (r *reader) items(open byte) value {
	r.i++
	closing := map[byte]string{'(': ")", '[': "]"}[open]
	all, comma := list{}, false
	for !r.take(closing) {
		if len(all) > 0 && !comma {
			return nil
		}
		v := r.expr(0)
		if v == nil {
			return nil
		}
		all, comma = append(all, v), r.take(",")
	}
	if open == '(' && len(all) == 1 && !comma {
		return all[0]
	}
	return all
}

// dict reads a dictionary. Of two values for a key the later one counts.
func (r *reader) dict() value {
	r.i++
	all, at, comma := dict{}, map[string]int{}, true
	for !r.take("}") {
		if !comma {
			return nil
		}
		k := r.expr(0)
		if k == nil || !r.take(":") {
			return nil
		}
		v := r.expr(0)
		key, ok := jsonKey(k)
		if v == nil || !ok {
			return nil
		}
		if n, twice := at[key]; twice {
			all[n].value = v
		} else {
			at[key] = len(all)
			all = append(all, pair{text{key, 1, false}, v})
		}
		comma = r.take(",")
	}
	return all
}

// jsonKey returns what json.dumps writes for a key.
func jsonKey(k value) (string, bool) {
	switch k := k.(type) {
	case text:
		return k.first(maxStatement), !k.raw && k.n == 1
	case list, dict:
		return "", false
	}
	var b strings.Builder
	ok := writeJSON(&b, k)
	return b.String(), ok
}

// strings reads string literals that stand side by side, which are one.
func (r *reader) strings() value {
	all := text{n: 1}
	for n := 0; ; n++ {
		r.space()
		prefix := strings.ToLower(strings.TrimRight(prefixForm.FindString(r.s[r.i:min(len(r.s), r.i+3)]), `"'`))
		at := r.i + len(prefix)
		if at >= len(r.s) || r.s[at] != '"' && r.s[at] != '\'' {
			return all
		}
		if raw := strings.Contains(prefix, "b"); n == 0 {
			all.raw = raw
		} else if raw != all.raw {
			return nil
		}
		end := quoted(r.s, at)
		if end < 0 {
			return nil
		}
		q := 1
		if end-at >= 6 && r.s[at+1] == r.s[at] && r.s[at+2] == r.s[at] {
			q = 3
		}
		s, ok := r.s[at+q:end-q], true
		if strings.Contains(prefix, "f") && strings.ContainsAny(s, "{}") {
			return nil // what is put together is not literal
		}
		if !strings.Contains(prefix, "r") {
			s, ok = unescape(s, all.raw)
		}
		if !ok || len(all.s)+len(s) > maxStatement {
			return nil
		}
		all.s += s
		r.i = end
	}
}

// unescape replaces the escapes of a literal. It reports false for one whose
// meaning it does not know.
func unescape(s string, raw bool) (string, bool) {
	var b strings.Builder
	for s != "" {
		i := strings.IndexByte(s, '\\')
		if i < 0 || i+1 == len(s) {
			break
		}
		b.WriteString(s[:i])
		switch s = s[i:]; {
		case s[1] == '\n':
			s = s[2:]
		case strings.IndexByte(`'"`, s[1]) >= 0:
			b.WriteByte(s[1])
			s = s[2:]
		case strings.IndexByte(`abfnrtv\xuU01234567`, s[1]) >= 0:
			// Go's escapes are Python's, but that \0 may have one digit.
			c, _, tail, err := strconv.UnquoteChar(s, 0)
			if err != nil && s[1] == '0' {
				c, tail, err = 0, s[2:], nil
			}
			if err != nil || raw && (c > 0xff || s[1]|0x20 == 'u') {
				return "", false
			}
			if s = tail; raw {
				b.WriteByte(byte(c))
			} else {
				b.WriteRune(c)
			}
		case s[1] == 'N':
			return "", false
		default:
			b.WriteString(s[:2])
			s = s[2:]
		}
	}
	b.WriteString(s)
	return b.String(), true
}

// show returns what print writes of v, if that is known.
func show(v value) (text, bool) {
	s := ""
	switch v := v.(type) {
	case text:
		return v, !v.raw
	case bool:
		s = map[bool]string{true: "True", false: "False"}[v]
	case none:
		s = "None"
	case int64:
		s = strconv.FormatInt(v, 10)
	case float64:
		s = showFloat(v)
	case *raised:
		s = v.text
	default:
		return text{}, false
	}
	return text{s, 1, false}, true
}

// showFloat is Python's repr.
func showFloat(f float64) string {
	if a := math.Abs(f); a != 0 && (a < 1e-4 || a >= 1e16) {
		return strconv.FormatFloat(f, 'e', -1, 64)
	}
	s := strconv.FormatFloat(f, 'f', -1, 64)
	if !strings.Contains(s, ".") {
		s += ".0"
	}
	return s
}

// toJSON writes v as json.dumps does, without spaces. It reports false if v is
// no JSON, or not known.
func toJSON(v value) (string, bool) {
	var b strings.Builder
	ok := writeJSON(&b, v)
	return b.String(), ok
}

func writeJSON(b *strings.Builder, v value) bool {
	switch v := v.(type) {
	case text:
		var line strings.Builder
		e := json.NewEncoder(&line)
		e.SetEscapeHTML(false)
		if v.raw || e.Encode(v.first(wire.MaxResult+1)) != nil {
			return false
		}
		b.WriteString(strings.TrimSuffix(line.String(), "\n"))
	case bool:
		b.WriteString(strconv.FormatBool(v))
	case none:
		b.WriteString("null")
	case int64, float64:
		t, _ := show(v)
		b.WriteString(t.s)
	case list:
		b.WriteByte('[')
		for i, x := range v {
			if i > 0 {
				b.WriteByte(',')
			}
			if !writeJSON(b, x) {
				return false
			}
		}
		b.WriteByte(']')
	case dict:
		b.WriteByte('{')
		for i, x := range v {
			if i > 0 {
				b.WriteByte(',')
			}
			if !writeJSON(b, x.key) {
				return false
			}
			b.WriteByte(':')
			if !writeJSON(b, x.value) {
				return false
			}
		}
		b.WriteByte('}')
	default:
		return false
	}
	return b.Len() <= 8*wire.MaxResult
}
