package simulator

import (
	"errors"
	"iter"
	"strings"
)

// What a model reads is bounded, whatever the code says.
const (
	maxLines     = 10_000   // lines of code
	maxActions   = 1_000    // things a model does that are seen from outside
	maxStatement = 1 << 20  // bytes of a statement that is read; a longer one states nothing
	maxRead      = 16 << 20 // bytes of statements that are gone through, repeats included
	maxDepth     = 16       // functions of the code's own in each other; calls in calls, thrice
	maxNesting   = 100      // blocks in blocks, as in Python
)

// errTooMuch unwinds a model that would go beyond its bounds.
var errTooMuch = errors.New("the code is more than can be modelled")

// A statement is one simple statement of Python, or the head of a compound one
// without its colon.
type statement struct {
	line   int
	indent int
	text   string
	end    int // the index of the next statement that is not in its block
}

// statements splits code. Comments are gone, and a statement over several lines
// is on one.
func statements(code string) ([]statement, error) {
	if strings.Count(code, "\n") > maxLines {
		return nil, errTooMuch
	}
	syntax := &raised{class: "SyntaxError", text: "invalid syntax"}
	var all []statement
	var b strings.Builder
	line, from, indent, depth, fresh := 1, 1, 0, 0, true
	put := func(c byte) {
		if c != ' ' && c != '\t' && c != '\r' || b.Len() > 0 {
			b.WriteByte(c)
		}
	}
	flush := func() {
		if t := strings.TrimSpace(b.String()); t != "" {
			if len(t) > maxStatement {
				t = "pass"
			}
			all = append(all, statement{line: from, indent: indent, text: t})
		}
		b.Reset()
		from = line
	}
	for i := 0; i < len(code); {
		if fresh {
			for indent = 0; i < len(code) && (code[i] == ' ' || code[i] == '\t'); i++ {
				indent += 2 // room for a body on its head's line
			}
			if fresh, from = false, line; i == len(code) {
				break
			}
		}
		next := i + 1
		switch c := code[i]; c {
		case '\'', '"':
			if next = quoted(code, i); next < 0 {
				return nil, syntax
			}
			line += strings.Count(code[i:next], "\n")
			b.WriteString(code[i:next])
		case '#':
			for next < len(code) && code[next] != '\n' {
				next++
			}
		case '\n':
			line++
			if depth > 0 {
				put(' ')
			} else {
				flush()
				fresh = true
			}
		case '\\':
			if strings.HasPrefix(code[next:], "\n") {
				line++
				next++
			}
			put(' ')
		case ';', ':':
			if depth > 0 || c == ':' && !compound(b.String()) {
				b.WriteByte(c)
				break
			}
			flush()
			if c == ':' {
				indent++
			}
		default:
			put(c)
			switch c {
			case '(', '[', '{':
				depth++
			case ')', ']', '}':
				if depth--; depth < 0 {
					return nil, syntax
				}
			}
		}
		i = next
	}
	if depth > 0 {
		return nil, syntax
	}
	flush()
	var open []int
	for i, s := range all {
		for len(open) > 0 && all[open[len(open)-1]].indent >= s.indent {
			all[open[len(open)-1]].end = i
			open = open[:len(open)-1]
		}
		if open = append(open, i); len(open) > maxNesting {
			return nil, syntax
		}
	}
	for _, i := range open {
		all[i].end = len(all)
	}
	return all, nil
}

// compound reports whether a statement that begins with head has a block.
func compound(head string) bool {
	w, _ := word(head[:min(len(head), 16)]) // else many colons would cost much
	switch w {
	case "if", "elif", "else", "for", "while", "try", "except", "finally", "with", "def", "class", "async":
		return true
	}
	return false
}

// word returns the name at the start of s, and what follows it.
func word(s string) (string, string) {
	i := 0
	for i < len(s) && letter(s[i]) {
		i++
	}
	return s[:i], strings.TrimSpace(s[i:])
}

func letter(c byte) bool {
	return c == '_' || '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'z' || c >= 0x80
}

// quoted returns the index after the string literal whose quote is at i, or -1
// if it has no end.
func quoted(s string, i int) int {
	q := s[i : i+1]
	if strings.HasPrefix(s[i+1:], q+q) {
		q = s[i : i+3]
	}
	for j := i + len(q); j < len(s); j++ {
		switch {
		case s[j] == '\\':
			j++
		case strings.HasPrefix(s[j:], q):
			return j + len(q)
		case s[j] == '\n' && len(q) == 1:
			return -1
		}
	}
	return -1
}

// outside goes through the bytes of s that are in no string and in no bracket.
// The bracket that opens is, the one that closes it is not.
func outside(s string) iter.Seq2[int, byte] {
	return func(yield func(int, byte) bool) {
		depth := 0
		for i := 0; i < len(s); i++ {
			c := s[i]
			if c == ')' || c == ']' || c == '}' {
				depth--
				continue
			}
			if depth == 0 && !yield(i, c) {
				return
			}
			switch c {
			case '(', '[', '{':
				depth++
			case '\'', '"':
				if i = quoted(s, i) - 1; i < 0 {
					return
				}
			}
		}
	}
}

// split cuts s at the commas outside of strings and brackets.
func split(s string) []string {
	var parts []string
	from := 0
	for i, c := range outside(s) {
		if c == ',' {
			parts = append(parts, strings.TrimSpace(s[from:i]))
			from = i + 1
		}
	}
	if last := strings.TrimSpace(s[from:]); last != "" {
		parts = append(parts, last)
	}
	return parts
}

// cut cuts s at the first separator outside of strings and brackets.
func cut(s, separator string) (before, after string, found bool) {
	for i := range outside(s) {
		if strings.HasPrefix(s[i:], separator) {
			return strings.TrimSpace(s[:i]), strings.TrimSpace(s[i+len(separator):]), true
		}
	}
	return strings.TrimSpace(s), "", false
}

// inside returns what is between the bracket at i and its partner, and the
// index after that.
func inside(s string, i int) (string, int) {
	depth := 0
	for j := i; j < len(s); j++ {
		switch s[j] {
		case '\'', '"':
			if j = quoted(s, j) - 1; j < 0 {
				return s[i+1:], len(s)
			}
		case '(', '[', '{':
			depth++
		case ')', ']', '}':
			if depth--; depth == 0 {
				return s[i+1 : j], j + 1
			}
		}
	}
	return s[i+1:], len(s)
}
