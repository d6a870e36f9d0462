package simulator

import (
	"math"
	"slices"
	"strconv"
	"strings"
)

// maxDepth bounds how deep code may be nested before the rest of it is not
// modelled.
const maxDepth = 60

// A stmt is a statement. Those with a body are compound.
type stmt struct {
	op       string // "expr", "assign", "if", "for", "while", "try", "with", "def", "import", "return", ...
	line     int
	targets  []*expr
	value    *expr
	aug      string // of an augmented assignment, its operator
	name     string // def: its name
	params   []string
	imports  [][2]string // what it is bound to, the full name
	body     []*stmt
	orelse   []*stmt
	final    []*stmt
	handlers []*handler
}

// simple reports whether s ends with its line.
func (s *stmt) simple() bool {
	return !slices.Contains([]string{"if", "while", "for", "try", "with", "def"}, s.op)
}

type handler struct {
	types *expr // nil: every exception
	name  string
	body  []*stmt
}

// An expr is an expression.
type expr struct {
	op   string // "const", "name", "attr", "call", "index", "tuple", "list", "dict", "bin", "cmp", ...
	s    string
	val  value
	kids []*expr
	line int
}

type parser struct {
	toks  []token
	pos   int
	depth int
}

// parsePython returns the statements of code. What it does not understand is a
// statement without effect.
func parsePython(code string) []*stmt {
	p := &parser{toks: lex(code)}
	var all []*stmt
	for p.pos < len(p.toks) {
		before := p.pos
		all = append(all, p.block()...)
		if p.pos == before {
			p.pos++
		}
	}
	return all
}

func (p *parser) peek() token {
	if p.pos < len(p.toks) {
		return p.toks[p.pos]
	}
	return token{}
}

func (p *parser) is(text string) bool {
	t := p.peek()
	return (t.kind == tokOp || t.kind == tokName) && t.text == text
}

func (p *parser) accept(text string) bool {
	if p.is(text) {
		p.pos++
		return true
	}
	return false
}

// fail unwinds to the statement that is being parsed.
func (p *parser) fail() { panic(errLex) }

func (p *parser) expect(text string) {
	if !p.accept(text) {
		p.fail()
	}
}

func (p *parser) name() string {
	t := p.peek()
	if t.kind != tokName {
		p.fail()
	}
	p.pos++
	return t.text
}

// block parses statements until a dedent or the end.
func (p *parser) block() []*stmt {
	var out []*stmt
	for p.pos < len(p.toks) && p.peek().kind != tokDedent {
		switch p.peek().kind {
		case tokNewline:
			p.pos++
		case tokIndent: // the body of what was not understood
			p.pos++
			p.skipBody()
		default:
			if s := p.guarded(); s != nil {
				out = append(out, s)
			}
		}
	}
	return out
}

func (p *parser) skipBody() {
	for depth := 1; depth > 0 && p.pos < len(p.toks); p.pos++ {
		switch p.toks[p.pos].kind {
		case tokIndent:
			depth++
		case tokDedent:
			depth--
		}
	}
}

// guarded parses one statement, or skips a line that it does not understand.
func (p *parser) guarded() (s *stmt) {
	start, depth := p.pos, p.depth
	defer func() {
		if r := recover(); r != nil {
			if r != any(errLex) {
				panic(r)
			}
			s, p.depth = nil, depth
			p.pos = max(p.pos, start)
			for p.pos < len(p.toks) && p.peek().kind != tokNewline && p.peek().kind != tokDedent && p.peek().kind != tokIndent {
				p.pos++
			}
			if p.pos == start {
				p.pos++
			}
		}
	}()
	p.deeper()
	s = p.statement()
	if k := p.peek().kind; s != nil && s.simple() && k != tokNewline && k != tokEnd && k != tokDedent {
		p.fail()
	}
	p.depth = depth
	return s
}

func (p *parser) deeper() {
	if p.depth++; p.depth > maxDepth {
		p.fail()
	}
}

// suite parses what follows a colon: statements on the same line, or a body.
func (p *parser) suite() []*stmt {
	p.expect(":")
	if p.peek().kind == tokNewline {
		p.pos++
		if p.peek().kind != tokIndent {
			return nil
		}
		p.pos++
		body := p.block()
		if p.peek().kind == tokDedent {
			p.pos++
		}
		return body
	}
	var body []*stmt
	for {
		if s := p.guarded(); s != nil {
			body = append(body, s)
		}
		if t := p.peek(); t.kind != tokNewline || t.text != ";" {
			break
		}
		p.pos++
	}
	if p.peek().kind == tokNewline {
		p.pos++
	}
	return body
}

func (p *parser) statement() *stmt {
	s := &stmt{line: p.peek().line}
	if p.is("async") {
		p.pos++
	}
	switch t := p.peek(); {
	case p.is("@"):
		p.fail()
	case t.kind != tokName:
	case p.accept("if"), p.accept("while"):
		s.op = t.text
		s.value = p.expr()
		s.body = p.suite()
		switch {
		case p.is("elif"):
			p.toks[p.pos].text = "if"
			s.orelse = []*stmt{p.guarded()}
		case p.accept("else"):
			s.orelse = p.suite()
		}
		return s
	case p.accept("for"):
		s.op = "for"
		s.targets = []*expr{p.targetList()}
		p.expect("in")
		s.value = p.exprList()
		s.body = p.suite()
		if p.accept("else") {
			s.orelse = p.suite()
		}
		return s
	case p.accept("try"):
		return p.try(s)
	case p.accept("with"):
		s.op = "with"
		paren := p.is("(") // with (a as b, c as d): is read as one value
		s.value = p.expr()
		if !paren && p.accept("as") {
			s.targets = []*expr{p.target()}
		}
		for p.accept(",") {
			p.expr()
			if p.accept("as") {
				p.target()
			}
		}
		s.body = p.suite()
		return s
	case p.accept("def"):
		return p.def(s)
	case p.accept("class"):
		for !p.is(":") {
			if k := p.peek().kind; k == tokNewline || k == tokEnd {
				p.fail()
			}
			p.pos++
		}
		p.suite()
		return nil
	case p.accept("import"), p.accept("from"):
		return p.imports(s, t.text == "from")
	case p.accept("return"), p.accept("raise"), p.accept("assert"):
		s.op = t.text
		if k := p.peek().kind; k != tokNewline && k != tokEnd {
			s.value = p.exprList()
		}
		if p.accept("from") {
			p.expr()
		}
		return s
	case p.accept("break"), p.accept("continue"):
		s.op = t.text
		return s
	case slices.Contains([]string{"pass", "global", "nonlocal", "del"}, t.text):
		p.fail() // the line has no effect
	}
	s.op, s.value = "expr", p.exprList()
	if p.accept(":") { // an annotation
		p.expr()
	}
	for p.accept("=") {
		s.op = "assign"
		s.targets = append(s.targets, s.value)
		s.value = p.exprList()
	}
	if t := p.peek(); t.kind == tokOp && len(t.text) > 1 && strings.HasSuffix(t.text, "=") && s.op == "expr" && !strings.Contains("== != <= >= :=", t.text) {
		p.pos++
		s.op, s.aug = "assign", strings.TrimSuffix(t.text, "=")
		s.targets = []*expr{s.value}
		s.value = p.exprList()
	}
	return s
}

func (p *parser) try(s *stmt) *stmt {
	s.op = "try"
	s.body = p.suite()
	for p.accept("except") {
		h := &handler{}
		if !p.is(":") {
			h.types = p.expr()
			if p.accept("as") {
				h.name = p.name()
			}
		}
		h.body = p.suite()
		s.handlers = append(s.handlers, h)
	}
	if p.accept("else") {
		s.orelse = p.suite()
	}
	if p.accept("finally") {
		s.final = p.suite()
	}
	return s
}

func (p *parser) def(s *stmt) *stmt {
	s.op, s.name = "def", p.name()
	p.expect("(")
	for !p.accept(")") {
		for p.accept("*") || p.accept("**") || p.accept("/") || p.accept(",") {
		}
		if p.accept(")") {
			break
		}
		s.params = append(s.params, p.name())
		if p.accept(":") {
			p.expr()
		}
		if p.accept("=") {
			p.expr()
		}
		if !p.is(")") {
			p.expect(",")
		}
	}
	if p.accept("->") {
		p.expr()
	}
	s.body = p.suite()
	return s
}

func (p *parser) imports(s *stmt, from bool) *stmt {
	s.op = "import"
	dotted := func() string {
		n := p.name()
		for p.accept(".") {
			n += "." + p.name()
		}
		return n
	}
	module := ""
	if from {
		module = dotted() + "."
		p.expect("import")
	}
	paren := p.accept("(")
	for {
		n := dotted()
		bound, full := n, module+n
		if p.accept("as") {
			bound = p.name()
		} else if !from {
			// import a.b binds a.
			bound, _, _ = strings.Cut(n, ".")
			full = bound
		}
		s.imports = append(s.imports, [2]string{bound, full})
		if !p.accept(",") || paren && p.is(")") {
			break
		}
	}
	if paren {
		p.expect(")")
	}
	return s
}

func (p *parser) targetList() *expr {
	t := p.target()
	if !p.is(",") {
		return t
	}
	t = &expr{op: "tuple", kids: []*expr{t}}
	for p.accept(",") && !p.is("in") {
		t.kids = append(t.kids, p.target())
	}
	return t
}

// target parses what is assigned to; it stops before "in".
func (p *parser) target() *expr { return p.postfix() }

// exprList parses one expression, or a tuple without parentheses.
func (p *parser) exprList() *expr {
	e := p.starred()
	if !p.is(",") {
		return e
	}
	e = &expr{op: "tuple", kids: []*expr{e}, line: e.line}
	for p.accept(",") {
		if t := p.peek(); t.kind == tokNewline || t.kind == tokEnd || t.text == "=" || t.text == ":" || t.text == ")" {
			break
		}
		e.kids = append(e.kids, p.starred())
	}
	return e
}

func (p *parser) starred() *expr {
	if p.accept("*") || p.accept("**") {
		return &expr{op: "star", kids: []*expr{p.expr()}}
	}
	return p.expr()
}

func number(s string) value {
	if n, err := strconv.ParseInt(s, 0, 64); err == nil {
		return n
	}
	if f, err := strconv.ParseFloat(s, 64); err == nil && !math.IsInf(f, 0) {
		return f
	}
	return unknown{}
}
