package simulator

import (
	"encoding/json"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"
)

// A value is what is known of a value of Python: nil for None, bool, int64,
// float64, string (of text or bytes), *list, *dict, or one of the types below.
type value any

type (
	unknown struct{}
	// partial is a string of which only the beginning is known.
	partial struct{ prefix string }
	// blob is a large string, list or array, of which only the size is known.
	blob struct{ bytes int64 }
	// span is range(from, to, step).
	span struct{ from, to, step int64 }
	list struct {
		items []value
		kind  string // "list", "tuple" or "set"
	}
	dict struct{ keys, values []value }
	// ref names something that the code did not define: "os.fork".
	ref struct{ name string }
	// method is a method of a value.
	method struct {
		of   value
		name string
	}
	// exception is one that was made, and maybe raised.
	exception struct{ class, text string }
	// object is of a kind that the model knows: a file, a socket, a thread.
	object struct {
		kind string
		path string // file
		mode string // file
		host string // connection
		port uint16
		tls  bool
	}
)

const (
	maxText  = 1 << 16 // bytes of a string that is kept; a larger one is a blob
	maxItems = 10_000
)

// truth returns whether v is true, and whether that is known.
func truth(v value) (is, known bool) {
	switch v := v.(type) {
	case nil:
		return false, true
	case bool:
		return v, true
	case int64:
		return v != 0, true
	case float64:
		return v != 0, true
	case string:
		return v != "", true
	case *list:
		return len(v.items) > 0, true
	case *dict:
		return len(v.keys) > 0, true
	case blob:
		return v.bytes > 0, true
	case partial:
		return v.prefix != "", v.prefix != ""
	}
	return false, false
}

// text is str(v); it reports false if that is not known.
func text(v value) (string, bool) { return format(v, false) }

func format(v value, quoted bool) (string, bool) { return new(renderer).format(v, quoted, 0) }

// A renderer writes out one value, and gives up on one of too many parts: a
// value may hold another, or itself, many times.
type renderer struct{ parts, bytes int }

func (r *renderer) enough(depth, bytes int) bool {
	r.parts++
	r.bytes += bytes
	return depth > maxDepth || r.parts > 10*maxItems || r.bytes > 16*maxText
}

func (r *renderer) format(v value, quoted bool, depth int) (string, bool) {
	n, _ := size(v)
	if _, large := v.(blob); large || r.enough(depth, int(n)) {
		return "", false
	}
	switch v := v.(type) {
	case nil:
		return "None", true
	case bool:
		if v {
			return "True", true
		}
		return "False", true
	case int64:
		return strconv.FormatInt(v, 10), true
	case float64:
		s := strconv.FormatFloat(v, 'g', -1, 64)
		if !strings.ContainsAny(s, ".en") {
			s += ".0"
		}
		return s, true
	case string:
		if quoted {
			return "'" + strings.ReplaceAll(v, "'", `\'`) + "'", true
		}
		return v, true
	case exception:
		if quoted {
			return v.class[strings.LastIndexByte(v.class, '.')+1:] + "('" + v.text + "')", true
		}
		return v.text, true
	case *list:
		open, end := "[", "]"
		switch v.kind {
		case "tuple":
			open, end = "(", ")"
			if len(v.items) == 1 {
				end = ",)"
			}
		case "set":
			open, end = "{", "}"
		}
		parts := make([]string, len(v.items))
		for i, x := range v.items {
			s, ok := r.format(x, true, depth+1)
			if !ok {
				return "", false
			}
			parts[i] = s
		}
		return open + strings.Join(parts, ", ") + end, true
	case *dict:
		parts := make([]string, len(v.keys))
		for i := range v.keys {
			k, ok := r.format(v.keys[i], true, depth+1)
			x, ok2 := r.format(v.values[i], true, depth+1)
			if !ok || !ok2 {
				return "", false
			}
			parts[i] = k + ": " + x
		}
		return "{" + strings.Join(parts, ", ") + "}", true
	}
	return "", false
}

// toJSON is json.dumps(v); it reports false if that is not known.
func toJSON(v value) (string, bool) { return new(renderer).json(v, 0) }

func (r *renderer) json(v value, depth int) (string, bool) {
	n, _ := size(v)
	if _, large := v.(blob); large || r.enough(depth, int(n)) {
		return "", false
	}
	switch v := v.(type) {
	case nil:
		return "null", true
	case bool:
		return strconv.FormatBool(v), true
	case int64:
		return strconv.FormatInt(v, 10), true
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return "", false
		}
		return format(v, false)
	case string:
		if !utf8.ValidString(v) {
			return "", false
		}
		b, err := json.Marshal(v)
		return string(b), err == nil
	case *list:
		if v.kind == "set" {
			return "", false
		}
		parts := make([]string, len(v.items))
		for i, x := range v.items {
			s, ok := r.json(x, depth+1)
			if !ok {
				return "", false
			}
			parts[i] = s
		}
		return "[" + strings.Join(parts, ", ") + "]", true
	case *dict:
		parts := make([]string, len(v.keys))
		for i := range v.keys {
			key, ok := text(v.keys[i])
			if !ok {
				return "", false
			}
			k, ok := r.json(key, depth+1)
			x, ok2 := r.json(v.values[i], depth+1)
			if !ok || !ok2 {
				return "", false
			}
			parts[i] = k + ": " + x
		}
		return "{" + strings.Join(parts, ", ") + "}", true
	}
	return "", false
}

func equal(a, b value) (is, known bool) {
	switch x := a.(type) {
	case nil, bool, int64, float64, string:
		switch b.(type) {
		case nil, bool, int64, float64, string:
			if f, ok := float(a); ok {
				if g, ok := float(b); ok {
					return f == g, true
				}
			}
			return x == b, true
		}
	}
	return false, false
}

func float(v value) (float64, bool) {
	switch v := v.(type) {
	case bool:
		if v {
			return 1, true
		}
		return 0, true
	case int64:
		return float64(v), true
	case float64:
		return v, true
	}
	return 0, false
}

func integer(v value) (int64, bool) {
	switch v := v.(type) {
	case bool:
		if v {
			return 1, true
		}
		return 0, true
	case int64:
		return v, true
	}
	return 0, false
}

// length is len(v).
func length(v value) (int64, bool) {
	switch v := v.(type) {
	case string:
		return int64(utf8.RuneCountInString(v)), true
	case *list:
		return int64(len(v.items)), true
	case *dict:
		return int64(len(v.keys)), true
	case blob:
		return v.bytes, true
	case span:
		return v.len(), true
	}
	return 0, false
}

func (s span) len() int64 {
	switch {
	case s.step > 0 && s.to > s.from:
		return int64((uint64(s.to)-uint64(s.from)-1)/uint64(s.step)) + 1
	case s.step < 0 && s.from > s.to:
		return int64((uint64(s.from)-uint64(s.to)-1)/uint64(-s.step)) + 1
	}
	return 0
}

// repeat is v * n. What is large is only a size.
func repeat(v value, n int64) value {
	n = max(n, 0)
	var unit int64
	switch v := v.(type) {
	case string:
		if unit = int64(len(v)); n == 0 || unit <= maxText/n {
			return strings.Repeat(v, int(n))
		}
	case *list:
		if unit = int64(len(v.items)); n == 0 || unit <= maxItems/n {
			out := &list{kind: v.kind}
			for range n {
				out.items = append(out.items, v.items...)
			}
			return out
		}
		unit *= 8
	case blob:
		unit = v.bytes
	default:
		return unknown{}
	}
	if unit > 0 && n > math.MaxInt64/unit {
		return blob{math.MaxInt64}
	}
	return blob{unit * n}
}

// add is a + b of two strings, of which parts may be unknown.
func add(a, b value) value {
	x, xok := a.(string)
	y, yok := b.(string)
	switch {
	case xok && yok && len(x)+len(y) <= maxText:
		return x + y
	case xok && yok:
		return blob{int64(len(x) + len(y))}
	}
	if _, ok := a.(partial); ok {
		return a
	}
	p, pok := b.(partial)
	if xok && pok && len(x)+len(p.prefix) <= maxText {
		return partial{x + p.prefix}
	}
	na, aok := size(a)
	nb, bok := size(b)
	if aok && bok {
		return blob{na + min(nb, math.MaxInt64-na)}
	}
	if xok {
		return partial{x}
	}
	return unknown{}
}

// size is how many bytes a string or blob has.
func size(v value) (int64, bool) {
	switch v := v.(type) {
	case string:
		return int64(len(v)), true
	case blob:
		return v.bytes, true
	}
	return 0, false
}
