package simulator

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/wire"
)

// A script is Python code that is gone through line by line, for the facts of
// fact.go. Nothing is computed: a name stands for the literal that it was last
// given, and a condition that is no literal is false.
type script struct {
	*process
	all    []statement
	texts  []string          // the strings, by their numbers
	known  map[string]string // the literals that names stand for
	defs   map[string]int    // the code's own functions
	depth  int               // of calls of them
	read   int               // bytes that were gone through
	waits  int               // actions that take time
	said   [2]text           // what a pass of a loop wrote to stdout and stderr
	caught error             // what is being handled
}

// raised unwinds to the next try.
type raised struct {
	class, text string
	line        int
}

func (r *raised) Error() string { return strings.TrimSuffix(r.class+": "+r.text, ": ") }

// leaves unwind to what they leave.
var leaves = map[string]error{"break": errors.New("break"), "continue": errors.New("continue"), "return": errors.New("return")}

// runPython models code and returns its exit status.
func runPython(p *process, code string) int {
	all, texts, err := statements(code)
	m := &script{process: p, all: all, texts: texts, known: map[string]string{}, defs: map[string]int{}}
	if err == nil {
		err = m.block(0, len(all))
	}
	if e := (*raised)(nil); errors.As(err, &e) {
		p.write(wire.Stderr, fmt.Sprintf("Traceback (most recent call last):\n  File \"/run/enclave/main.py\", line %d, in <module>\n%v\n", max(e.line, 1), e))
	}
	return p.status(err)
}

// block goes through the statements from from to to.
func (m *script) block(from, to int) (err error) {
	for i := from; i < to && err == nil; {
		s := m.all[i]
		if m.read += len(s.text) + 256; m.read > maxRead {
			return errTooMuch
		}
		i, err = m.statement(i, to)
		if e := (*raised)(nil); errors.As(err, &e) && e.line == 0 {
			e.line = s.line
		}
		err = errors.Join(err, m.running())
	}
	return err
}

var (
	heads    = lazily(`^(?:async )?(\w*)\s*(.*?)(?: as (\w+))?$`)
	assigns  = lazily(`^(\w+) *(?::[^=]*)?(\+?)= *([^=].*)$`)
	givesTo  = lazily(`^[^="(]*=|\b(?:for|as) [^="]*|\w+ ?:=|^def .*`)
	mayLeave = lazily(`^(?:break|return|raise)\b|exit\(`)
	raises   = lazily(`^([A-Z][\w.]*)(?: ?\( ?(.*)\))?(?: from .*)?$`)
	inRange  = lazily(`^range\( *(?:(\d+) *, *)?(\d+) *\)$`)
	inItems  = lazily(`^[(\[] *` + item + `(?: *, *` + item + `)* *,? *[)\]]$`)
)

// statement goes through the statement i, and returns which is next.
func (m *script) statement(i, to int) (next int, err error) {
	s := m.all[i]
	g := heads().FindStringSubmatch(s.text)
	head, l := g[1], g[2]
	switch head {
	case "def":
		m.defs[word().FindString(l)] = i
		return s.end, nil
	case "class", "except", "pass", "import", "from", "global", "nonlocal", "del", "assert":
		return s.end, nil
	case "try":
		return m.try(i, to)
	case "break", "continue":
		return 0, leaves[head]
	case "for":
		g[3], l, _ = strings.Cut(l, " in ")
	case "if", "elif", "else", "finally", "while", "with", "return", "raise":
	default:
		head, l = "", s.text
	}
	if l, err = m.line(l); err != nil {
		return 0, err
	}
	holds := l == "true" || l == "1" || strings.HasPrefix(l, "__name__ ==")
	switch head {
	case "for":
		return s.end, m.each(g[3], l, i+1, s.end)
	case "while":
		if holds {
			return s.end, m.loop(-1, i+1, s.end, func(int64) {})
		}
		return s.end, m.each("", "?", i+1, s.end)
	case "with":
		m.bind(g[3], l)
		return s.end, m.block(i+1, s.end)
	case "return":
		return 0, leaves[head]
	case "raise":
		return 0, m.raise(l)
	case "if", "elif", "else", "finally": // the latter of what is over, or was not known
		next = s.end
		if holds || head == "else" || head == "finally" {
			err = m.block(i+1, s.end)
			for holds && next < to && (strings.HasPrefix(m.all[next].text, "elif") || m.all[next].text == "else") {
				next = m.all[next].end
			}
		}
		if !holds || head == "elif" {
			m.forget(i+1, s.end)
		}
		return next, err
	}
	m.forget(i, i+1)
	if g := assigns().FindStringSubmatch(l); g != nil && g[2] == "" {
		m.bind(g[1], g[3])
	} else if g != nil && strings.HasSuffix(g[3], `"`) {
		err = m.grows(g[3])
	}
	return s.end, err
}

// bind lets name stand for s if that is a literal, or begins with one.
func (m *script) bind(name, s string) {
	delete(m.known, name)
	if start := begins().FindStringSubmatch(s); start != nil {
		m.known[name] = start[1] + " + ?"
	} else if whole().MatchString(s) {
		m.known[name] = strings.TrimSpace(s)
	}
}

// try goes through a block, and for what it raises through the first clause,
// whatever that says that it catches.
func (m *script) try(i, to int) (int, error) {
	err := m.block(i+1, m.all[i].end)
	var e *raised
	failed := errors.As(err, &e)
	for i = m.all[i].end; i < to; i = m.all[i].end {
		g := heads().FindStringSubmatch(m.all[i].text)
		switch {
		case g[1] == "except" && e != nil:
			m.known[g[3]] = "e" + m.number(e.text)
			m.known["type("+g[3]+").__name__"] = m.number(e.class[strings.LastIndexByte(e.class, '.')+1:])
			m.caught, e = e, nil
			err = m.block(i+1, m.all[i].end)
		case g[1] == "else" && !failed && err == nil, g[1] == "finally" && !errors.Is(err, errEnded):
			if after := m.block(i+1, m.all[i].end); after != nil {
				err = after
			}
		case g[1] != "except" && g[1] != "else" && g[1] != "finally":
			return i, err
		}
	}
	return i, err
}

// raise goes through a raise.
func (m *script) raise(l string) error {
	g := raises().FindStringSubmatch(l)
	switch {
	case g == nil && m.caught != nil:
		return m.caught
	case g == nil:
		return &raised{class: "RuntimeError"}
	case g[1] == "SystemExit":
		return m.exits(g[2])
	}
	t, _ := m.literal(g[2])
	return &raised{class: g[1], text: t.first(1000)}
}

// each goes through a for.
func (m *script) each(name, items string, from, to int) error {
	if g := inRange().FindStringSubmatch(items); g != nil {
		first, last := int64(float(g[1])), int64(float(g[2]))
		return m.loop(max(last-first, 0), from, to, func(i int64) { m.bind(name, strconv.FormatInt(first+i, 10)) })
	}
	if inItems().MatchString(items) {
		all := anItem().FindAllString(items[1:len(items)-1], -1)
		return m.loop(int64(len(all)), from, to, func(i int64) { m.bind(name, all[i]) })
	}
	defer m.forget(from, to)
	return m.loop(1, from, to, func(int64) { m.forget(from-1, from) }) // how often is not known
}

// loop goes through a block n times, or without end if n is negative. It stops
// when nothing more can be seen of it: of what grows, the end is reckoned; what
// only computes uses up the CPU time. What the passes that are left out would
// have assigned is not known.
func (m *script) loop(n int64, from, to int, bind func(int64)) error {
	p, files, waits, unsure := m.process, m.guest.files, m.waits, false
	for _, s := range m.all[from:to] {
		m.read += len(s.text)
		unsure = unsure || mayLeave().MatchString(s.text)
	}
	for i := int64(0); i != n; i++ {
		actions, tasks, memory, disk, waited := p.actions, p.tasks, p.memory, files.used(), m.waits
		m.said = [2]text{}
		bind(i)
		err := m.block(from, to)
		switch endless := n < 0 && errors.Is(err, errTooMuch); {
		case errors.Is(err, leaves["break"]):
			return nil
		case endless && m.waits > waits:
			return p.idle()
		case endless:
			return p.burn()
		case err != nil && !errors.Is(err, leaves["continue"]):
			return err
		}
		left, idle, silent := n-i-1, p.actions == actions, m.said == [2]text{}
		if n < 0 {
			left = 1 << 62
		}
		grown := func(now, before int64) int64 { return times(max(now-before, 0), left) }
		tasks, memory, disk = grown(p.tasks, tasks), grown(p.memory, memory), grown(files.used(), disk)
		switch {
		case unsure || idle && left > 0 && n >= 0:
			m.forget(from, to)
			return nil
		case idle && n < 0:
			return p.burn()
		case n >= 0 && times(int64(p.actions-actions), left) <= int64(maxActions-p.actions):
		case tasks > p.limits().Pids-p.tasks:
			return p.bomb()
		case memory > p.limits().Memory-p.memory:
			return p.keep(p.limits().Memory)
		case disk > p.limits().Disk-files.used():
			return p.guest.box.breach(backend.DiskLimit, p.limits().Disk+1, "files above the limit")
		case m.waits == waited && n < 0 && !silent:
			return p.chatter(m.said[0], m.said[1])
		case m.waits == waited && n >= 0 && silent && max(tasks, memory, disk) > 0:
			p.tasks, p.memory = p.tasks+tasks, p.memory+memory
			files.fill(disk)
			m.forget(from, to)
			return nil
		}
	}
	return nil
}

// function goes through a function of the code's own.
func (m *script) function(at int, args []string) error {
	if m.depth == maxDepth {
		return &raised{class: "RecursionError", text: "maximum recursion depth exceeded"}
	}
	m.depth++
	_, params, _ := strings.Cut(m.all[at].text, "(")
	params, _, _ = strings.Cut(params, ")")
	for i, param := range anArg().FindAllString(params, -1) {
		_, value, _ := strings.Cut(param, "=")
		if i < len(args) {
			value = args[i]
		}
		m.bind(word().FindString(param), value)
	}
	err := m.block(at+1, m.all[at].end)
	m.depth--
	m.forget(at, m.all[at].end) // names of the caller may be the same
	if errors.Is(err, leaves["return"]) {
		return nil
	}
	return err
}

// forget makes the values of all names unknown that the statements may assign.
func (m *script) forget(from, to int) {
	for _, s := range m.all[from:to] {
		m.read += len(s.text)
		for _, names := range givesTo().FindAllString(s.text, -1) {
			for _, name := range word().FindAllString(names, -1) {
				delete(m.known, name)
			}
		}
	}
}
