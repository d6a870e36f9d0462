package simulator

import (
	"slices"
	"strings"
)

// levels are the binary operators, those that bind least first.
var levels = [][]string{{"|"}, {"^"}, {"&"}, {"<<", ">>"}, {"+", "-"}, {"*", "/", "//", "%", "@"}}

// expr parses one expression.
func (p *parser) expr() *expr {
	depth := p.depth
	p.deeper()
	defer func() { p.depth = depth }()
	if p.accept("lambda") {
		for !p.accept(":") {
			if k := p.peek().kind; k == tokNewline || k == tokEnd {
				p.fail()
			}
			p.pos++
		}
		p.expr()
		return &expr{op: "const", val: unknown{}}
	}
	if p.accept("await") || p.accept("yield") {
		p.accept("from")
		return p.expr()
	}
	e := p.or()
	if p.accept(":=") {
		e = &expr{op: "walrus", kids: []*expr{e, p.expr()}}
	}
	if p.accept("if") {
		cond := p.or()
		p.expect("else")
		e = &expr{op: "cond", kids: []*expr{cond, e, p.expr()}}
	}
	return e
}

func (p *parser) or() *expr {
	e := p.and()
	for p.accept("or") {
		e = &expr{op: "or", kids: []*expr{e, p.and()}}
	}
	return e
}

func (p *parser) and() *expr {
	e := p.not()
	for p.accept("and") {
		e = &expr{op: "and", kids: []*expr{e, p.not()}}
	}
	return e
}

func (p *parser) not() *expr {
	if p.accept("not") {
		depth := p.depth
		p.deeper()
		defer func() { p.depth = depth }()
		return &expr{op: "not", kids: []*expr{p.not()}}
	}
	e := p.binary(0)
	var all *expr
	for {
		op := ""
		switch t := p.peek(); {
		case t.kind == tokOp && slices.Contains([]string{"==", "!=", "<", ">", "<=", ">="}, t.text):
			op = t.text
		case p.is("in"), p.is("is"):
			op = t.text
		case p.is("not") && p.pos+1 < len(p.toks) && p.toks[p.pos+1].text == "in":
			p.pos++
			op = "not in"
		}
		if op == "" {
			break
		}
		p.pos++
		if op == "is" && p.accept("not") {
			op = "is not"
		}
		right := p.binary(0)
		cmp := &expr{op: "cmp", s: op, kids: []*expr{e, right}}
		if e = right; all == nil {
			all = cmp
		} else {
			all = &expr{op: "and", kids: []*expr{all, cmp}}
		}
	}
	if all != nil {
		return all
	}
	return e
}

func (p *parser) binary(level int) *expr {
	if level == len(levels) {
		return p.unary()
	}
	e := p.binary(level + 1)
	for t := p.peek(); t.kind == tokOp && slices.Contains(levels[level], t.text); t = p.peek() {
		p.pos++
		e = &expr{op: "bin", s: t.text, kids: []*expr{e, p.binary(level + 1)}, line: t.line}
	}
	return e
}

func (p *parser) unary() *expr {
	t := p.peek()
	if p.accept("-") || p.accept("+") || p.accept("~") {
		depth := p.depth
		p.deeper()
		defer func() { p.depth = depth }()
		return &expr{op: "unary", s: t.text, kids: []*expr{p.unary()}}
	}
	e := p.postfix()
	if p.accept("**") {
		depth := p.depth
		p.deeper()
		defer func() { p.depth = depth }()
		e = &expr{op: "bin", s: "**", kids: []*expr{e, p.unary()}}
	}
	return e
}

func (p *parser) postfix() *expr {
	e := p.atom()
	for {
		line := p.peek().line
		switch {
		case p.accept("."):
			e = &expr{op: "attr", s: p.name(), kids: []*expr{e}, line: line}
		case p.accept("("):
			e = &expr{op: "call", kids: append([]*expr{e}, p.args()...), line: line}
		case p.accept("["):
			i := &expr{op: "const", val: unknown{}}
			if !p.is(":") {
				i = p.exprList()
			}
			for p.accept(":") { // a slice
				i = &expr{op: "const", val: unknown{}}
				if !p.is(":") && !p.is("]") {
					p.expr()
				}
			}
			p.expect("]")
			e = &expr{op: "index", kids: []*expr{e, i}, line: line}
		default:
			return e
		}
	}
}

func (p *parser) args() []*expr {
	var out []*expr
	for !p.accept(")") {
		if t := p.peek(); t.kind == tokName && p.pos+1 < len(p.toks) && p.toks[p.pos+1].text == "=" && p.toks[p.pos+1].kind == tokOp {
			p.pos += 2
			out = append(out, &expr{op: "kw", s: t.text, kids: []*expr{p.expr()}})
		} else {
			e := p.starred()
			if p.is("for") || p.is("async") {
				e = p.comprehension(e)
			}
			out = append(out, e)
		}
		if !p.is(")") {
			p.expect(",")
		}
	}
	return out
}

// comprehension parses what follows its element, up to the closing bracket.
func (p *parser) comprehension(elt *expr) *expr {
	e := &expr{op: "gen", kids: []*expr{elt}}
	for p.is("for") || p.is("async") {
		p.accept("async")
		p.expect("for")
		loop := &expr{op: "loop", kids: []*expr{p.targetList(), nil}}
		p.expect("in")
		loop.kids[1] = p.or()
		for p.accept("if") {
			loop.kids = append(loop.kids, p.or())
		}
		e.kids = append(e.kids, loop)
	}
	return e
}

func (p *parser) atom() *expr {
	t := p.peek()
	switch {
	case t.kind == tokString:
		return p.strings()
	case t.kind == tokNumber:
		p.pos++
		return &expr{op: "const", val: number(t.text)}
	case t.kind == tokName:
		p.pos++
		switch t.text {
		case "True":
			return &expr{op: "const", val: true}
		case "False":
			return &expr{op: "const", val: false}
		case "None":
			return &expr{op: "const", val: nil}
		case "if", "else", "for", "in", "is", "and", "or", "not", "as", "import", "from", "except":
			p.fail()
		}
		return &expr{op: "name", s: t.text, line: t.line}
	case p.accept("("):
		if p.accept(")") {
			return &expr{op: "tuple"}
		}
		e := p.exprList()
		if p.is("for") || p.is("async") {
			e = p.comprehension(e)
		}
		p.expect(")")
		return e
	case p.accept("["):
		e := &expr{op: "list"}
		for !p.accept("]") {
			k := p.starred()
			if p.is("for") || p.is("async") {
				e = p.comprehension(k)
				p.expect("]")
				return e
			}
			e.kids = append(e.kids, k)
			if !p.is("]") {
				p.expect(",")
			}
		}
		return e
	case p.accept("{"):
		return p.display()
	case p.accept("..."):
		return &expr{op: "const", val: unknown{}}
	}
	p.fail()
	return nil
}

// display parses a dict or a set.
func (p *parser) display() *expr {
	e := &expr{op: "dict"}
	for !p.accept("}") {
		k := p.starred()
		if !p.accept(":") {
			e.op = "set"
			e.kids = append(e.kids, k)
		} else {
			e.kids = append(e.kids, k, p.expr())
		}
		if p.is("for") || p.is("async") {
			p.comprehension(k)
			p.expect("}")
			return &expr{op: "const", val: unknown{}}
		}
		if !p.is("}") {
			p.expect(",")
		}
	}
	return e
}

// strings parses adjacent string literals as the one that they are.
func (p *parser) strings() *expr {
	var parts []*expr
	for p.peek().kind == tokString {
		t := p.peek()
		p.pos++
		if strings.Contains(t.pre, "f") {
			parts = append(parts, p.fstring(t)...)
		} else {
			parts = append(parts, &expr{op: "const", val: t.text})
		}
	}
	if len(parts) == 1 && parts[0].op == "const" {
		return parts[0]
	}
	return &expr{op: "fstr", kids: parts}
}

// fstring splits a formatted string into literals and expressions.
func (p *parser) fstring(t token) []*expr {
	var parts []*expr
	text := func(s string) {
		if s != "" {
			parts = append(parts, &expr{op: "const", val: strings.NewReplacer("{{", "{", "}}", "}").Replace(s)})
		}
	}
	s := t.text
	from := 0
	for i := 0; i < len(s); i++ {
		if s[i] != '{' {
			continue
		}
		if i+1 < len(s) && s[i+1] == '{' {
			i++
			continue
		}
		end := strings.IndexByte(s[i:], '}')
		if end < 0 {
			break
		}
		text(s[from:i])
		inner, _, _ := strings.Cut(s[i+1:i+end], "!")
		sub := &parser{toks: lex(inner), depth: p.depth + 1}
		parts = append(parts, sub.whole())
		i += end
		from = i + 1
	}
	text(s[from:])
	return parts
}

// whole parses all tokens as one expression, up to a format; what it does not
// understand is unknown.
func (p *parser) whole() (e *expr) {
	defer func() {
		if r := recover(); r != nil {
			if r != any(errLex) {
				panic(r)
			}
			e = &expr{op: "const", val: unknown{}}
		}
	}()
	return p.expr()
}
