package simulator

import (
	"fmt"
	"strconv"
	"strings"
)

// A statement is one simple statement of Python, or the head of a compound one
// without its colon.
type statement struct {
	line, indent int
	text         string
	end          int // the index of the next statement that is not in its block
}

var (
	// A lone quote comes last: it opens a string that has no end.
	token = lazily(`(?s)([rbufRBUF]{0,2})("""(?:[^\\]|\\.)*?"""|'''(?:[^\\]|\\.)*?'''|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|["'])` +
		`|#[^\n]*|\\\n|\n[ \t]*|[][(){}:;]|[\pL\pN_]+`)
	compound = lazily(`^\s*(?:if|elif|else|for|while|try|except|finally|with|def|class|async)\b`)
	escape   = lazily(`(?s)\\(?:x..|u.{4}|U.{8}|[0-7]{3}|.)`)
	spelled  = map[string]string{"True": "true", "False": "false", "None": "null", "true": "?", "false": "?", "null": "?"}
)

// statements splits code. Comments are gone, a statement over several lines is
// on one, and constants are spelled as in JSON. In place of each string stands
// its number in texts, so that nothing in it is taken for code, with a b before
// it if it is of bytes. A ? stands for what is not known.
func statements(code string) (all []statement, texts []string, err error) {
	if strings.Count(code, "\n") > maxLines || len(code) > maxRead {
		return nil, nil, errTooMuch
	}
	syntax := &raised{class: "SyntaxError", text: "invalid syntax"}
	var b strings.Builder
	line, depth, s := 0, 0, statement{}
	texts = []string{"\x00"}
	flush := func(indent int) {
		if s.text = strings.TrimSpace(b.String()); s.text != "" && len(s.text) <= maxLine {
			all = append(all, s)
		}
		b.Reset()
		s = statement{line: line, indent: indent}
	}
	for code = "\n" + code + "\n"; depth >= 0; {
		at := token().FindStringSubmatchIndex(code)
		if at == nil {
			break
		}
		b.WriteString(code[:at[0]])
		t := code[at[0]:at[1]]
		code = code[at[1]:]
		switch c := t[0]; {
		case at[4] >= 0:
			prefix, s := t[:at[3]-at[2]], t[at[3]-at[2]:]
			if len(s) == 1 || len(s) == 2 && strings.HasPrefix(code, s[:1]) {
				return nil, nil, syntax
			}
			line += strings.Count(s, "\n")
			prefix = strings.ToLower(prefix)
			text, all, known := stringOf(prefix, s)
			switch {
			case !known:
				b.WriteString(" ?")
			case all:
				fmt.Fprintf(&b, " %s\"%d\"", strings.Trim(prefix, "ruf"), len(texts))
			default:
				fmt.Fprintf(&b, " \"%d\" + ?", len(texts))
			}
			texts = append(texts, text)
		case c == '#':
		case c == '\\' || c == '\n' && depth > 0:
			line++
			b.WriteByte(' ')
		case c == '\n':
			line++
			flush(2 * len(t)) // room for a body on its head's line
		case c == ';' && depth == 0:
			flush(s.indent)
		case c == ':' && depth == 0 && compound().MatchString(b.String()[:min(b.Len(), 16)]):
			flush(s.indent + 1)
		default:
			depth += strings.Count("([{", t[:1]) - strings.Count(")]}", t[:1])
			if as := spelled[t]; as != "" {
				t = as
			}
			b.WriteString(t)
		}
	}
	if depth != 0 {
		return nil, nil, syntax
	}
	if len(all) > maxLines {
		return nil, nil, errTooMuch
	}
	for i := range all {
		for all[i].end = i + 1; all[i].end < len(all) && all[all[i].end].indent > all[i].indent; all[i].end++ {
		}
	}
	return all, texts, nil
}

// stringOf returns what a string literal says, as far as it is all literal.
func stringOf(prefix, s string) (text string, all, known bool) {
	q := 1
	if len(s) >= 6 && s[1] == s[0] && s[2] == s[0] {
		q = 3
	}
	s, all, known = s[q:len(s)-q], true, true
	if i := strings.IndexAny(s, "{}"); i >= 0 && strings.Contains(prefix, "f") {
		s, all = s[:i], false
	}
	if strings.Contains(prefix, "r") {
		return s, all, true
	}
	s = escape().ReplaceAllStringFunc(s, func(e string) string {
		c, _, rest, err := strconv.UnquoteChar(e, e[1]) // Go's are Python's, but for \0
		switch {
		case e == "\\\n":
			return ""
		case e == `\0`:
			return "\x00"
		case err != nil && strings.IndexByte("xuUN01234567", e[1]) < 0:
			return e
		case strings.Contains(prefix, "b") && c < 0x100:
			return string([]byte{byte(c)}) + rest
		}
		known = known && err == nil
		return string(c) + rest
	})
	return s, all, known
}
