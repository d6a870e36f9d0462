package simulator

import (
	"errors"
	"strings"
	"unicode/utf8"
)

// A token of Python. Its kind is one of the constants below.
type token struct {
	kind byte
	text string // a string's value, else the token as written
	pre  string // a string's prefix, lower case
	line int
}

const (
	tokEnd     = 0
	tokName    = 'n'
	tokNumber  = '#'
	tokString  = 's'
	tokOp      = 'o'
	tokNewline = '\n'
	tokIndent  = '>'
	tokDedent  = '<'
)

var errLex = errors.New("not modelled")

// lex splits code into tokens. It never fails: what it does not know is an
// operator of one character.
func lex(code string) []token {
	l := &lexer{src: code, line: 1, indents: []int{0}}
	for l.pos < len(l.src) {
		l.next()
	}
	l.newline()
	for range l.indents[1:] {
		l.add(tokDedent, "")
	}
	return l.toks
}

type lexer struct {
	src     string
	pos     int
	line    int
	depth   int // of brackets
	indents []int
	toks    []token
}

func (l *lexer) add(kind byte, text string) {
	l.toks = append(l.toks, token{kind: kind, text: text, line: l.line})
}

func (l *lexer) newline() {
	if n := len(l.toks); n > 0 && l.toks[n-1].kind != tokNewline && l.toks[n-1].kind != tokIndent && l.toks[n-1].kind != tokDedent {
		l.add(tokNewline, "")
	}
}

// atLineStart reports whether what is next begins a logical line.
func (l *lexer) atLineStart() bool {
	if l.depth > 0 {
		return false
	}
	n := len(l.toks)
	return n == 0 || l.toks[n-1].kind == tokNewline
}

func (l *lexer) next() {
	if l.atLineStart() && (l.pos == 0 || l.src[l.pos-1] == '\n') && l.indentation() {
		return
	}
	rest := l.src[l.pos:]
	c := rest[0]
	switch {
	case c == '\n':
		if l.depth == 0 {
			l.newline()
		}
		l.line++
		l.pos++
	case c == ' ' || c == '\t' || c == '\r' || c == '\f':
		l.pos++
	case c == '\\' && strings.HasPrefix(rest, "\\\n"):
		l.line++
		l.pos += 2
	case c == '#':
		l.pos += lineLen(rest)
	case c == '"' || c == '\'':
		l.str("", 0)
	case isNameByte(c) && (c < '0' || c > '9'):
		n := 1
		for n < len(rest) && isNameByte(rest[n]) {
			n++
		}
		if n <= 2 && n < len(rest) && (rest[n] == '"' || rest[n] == '\'') && strings.Trim(strings.ToLower(rest[:n]), "rbfu") == "" {
			l.str(strings.ToLower(rest[:n]), n)
			return
		}
		l.add(tokName, rest[:n])
		l.pos += n
	case c >= '0' && c <= '9' || c == '.' && len(rest) > 1 && rest[1] >= '0' && rest[1] <= '9':
		n := 1
		for n < len(rest) && (isNameByte(rest[n]) || rest[n] == '.' || (rest[n] == '-' || rest[n] == '+') && (rest[n-1] == 'e' || rest[n-1] == 'E') && !strings.HasPrefix(rest, "0x")) {
			n++
		}
		l.add(tokNumber, strings.ReplaceAll(rest[:n], "_", ""))
		l.pos += n
	default:
		l.op(rest)
	}
}

// indentation handles the start of a line; it reports true if that was all.
func (l *lexer) indentation() bool {
	width, n := 0, 0
	rest := l.src[l.pos:]
	for n < len(rest) && (rest[n] == ' ' || rest[n] == '\t') {
		if rest[n] == '\t' {
			width += 8 - width%8
		} else {
			width++
		}
		n++
	}
	if n == len(rest) || rest[n] == '\n' || rest[n] == '#' || rest[n] == '\r' {
		l.pos += n + lineLen(rest[n:])
		if l.pos < len(l.src) {
			l.pos++
			l.line++
		}
		return true
	}
	l.pos += n
	switch top := l.indents[len(l.indents)-1]; {
	case width > top && len(l.indents) < maxDepth:
		l.indents = append(l.indents, width)
		l.add(tokIndent, "")
	case width < top:
		for len(l.indents) > 1 && width < l.indents[len(l.indents)-1] {
			l.indents = l.indents[:len(l.indents)-1]
			l.add(tokDedent, "")
		}
	}
	return false
}

func lineLen(s string) int {
	if i := strings.IndexByte(s, '\n'); i >= 0 {
		return i
	}
	return len(s)
}

func isNameByte(c byte) bool {
	return c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c >= utf8.RuneSelf
}

// str reads a string whose quote is skip bytes ahead.
func (l *lexer) str(pre string, skip int) {
	start := l.line
	s := l.src[l.pos+skip:]
	quote := s[:1]
	if strings.HasPrefix(s, strings.Repeat(quote, 3)) {
		quote = s[:3]
	}
	s = s[len(quote):]
	var b strings.Builder
	i := 0
	for i < len(s) && !strings.HasPrefix(s[i:], quote) {
		if s[i] == '\n' {
			l.line++
			if len(quote) == 1 {
				break // never closed
			}
		}
		if s[i] == '\\' && i+1 < len(s) {
			if strings.Contains(pre, "r") {
				b.WriteString(s[i : i+2])
				i += 2
				continue
			}
			n, text := escape(s[i+1:])
			b.WriteString(text)
			i += 1 + n
			continue
		}
		b.WriteByte(s[i])
		i++
	}
	l.toks = append(l.toks, token{kind: tokString, text: b.String(), pre: pre, line: start})
	l.pos += skip + len(quote) + i
	if l.pos < len(l.src) && strings.HasPrefix(l.src[l.pos:], quote) {
		l.pos += len(quote)
	}
}

// escape reads what follows a backslash: how long it is and what it stands for.
func escape(s string) (int, string) {
	switch s[0] {
	case 'n':
		return 1, "\n"
	case 't':
		return 1, "\t"
	case 'r':
		return 1, "\r"
	case '0':
		return 1, "\x00"
	case '\n':
		return 1, ""
	case '\\', '\'', '"':
		return 1, s[:1]
	case 'x':
		if len(s) >= 3 {
			if hi, lo := unhex(s[1]), unhex(s[2]); hi >= 0 && lo >= 0 {
				return 3, string(rune(hi<<4 | lo))
			}
		}
	}
	return 1, "\\" + s[:1]
}

func unhex(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

func (l *lexer) op(rest string) {
	n := 1
	for _, op := range []string{"**=", "//=", ">>=", "<<=", "...", "**", "//", "==", "!=", "<=", ">=", "->", "+=", "-=", "*=", "/=", "%=", "|=", "&=", "^=", ":=", "<<", ">>"} {
		if strings.HasPrefix(rest, op) {
			n = len(op)
			break
		}
	}
	switch rest[0] {
	case '(', '[', '{':
		l.depth++
	case ')', ']', '}':
		l.depth = max(0, l.depth-1)
	}
	if rest[0] == ';' && l.depth == 0 {
		l.add(tokNewline, ";")
	} else {
		l.add(tokOp, rest[:n])
	}
	l.pos += n
}
