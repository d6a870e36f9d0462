package simulator

import (
	"errors"
	"fmt"
	"strings"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/wire"
)

// A script is Python code whose statements are gone through in their order, for
// what they state literally. Nothing is computed: a name stands for the literal
// it was last given, a call either is one of those in call.go or states nothing,
// and a condition that no literal decides is false.
type script struct {
	*process
	all    []statement
	known  map[string]value // what names stand for
	defs   map[string]int   // the code's own functions
	depth  int
	read   int     // bytes that were gone through
	waits  int     // actions that take time
	said   [2]text // what was written to stdout and stderr, if it can be repeated
	unsure bool    // what was gone through may leave the loop it is in
	caught *raised // the exception that is being handled
}

// raised unwinds to the next try.
type raised struct {
	class, text string
	line        int
}

func (r *raised) Error() string { return r.class + ": " + r.text }

func raise(class, format string, args ...any) error {
	return &raised{class: class, text: fmt.Sprintf(format, args...)}
}

// A leave unwinds to what its word leaves: break, continue or return.
type leave string

func (l leave) Error() string { return string(l) }

// runPython models code and returns its exit status.
func runPython(p *process, code string) int {
	all, err := statements(code)
	m := &script{process: p, all: all, known: map[string]value{}, defs: map[string]int{}}
	if err == nil {
		err = m.block(0, len(all))
	}
	var e *raised
	var word leave
	switch {
	case errors.As(err, &word):
		err = nil
	case errors.As(err, &e):
		trace := fmt.Sprintf("Traceback (most recent call last):\n  File \"/run/enclave/main.py\", line %d, in <module>\n%s", max(e.line, 1), e.class)
		if e.text != "" {
			trace += ": " + e.text
		}
		p.write(wire.Stderr, trace+"\n")
	}
	return p.status(err)
}

// block goes through the statements from from to to.
func (m *script) block(from, to int) error {
	for i := from; i < to; {
		if err := m.running(); err != nil {
			return err
		}
		if m.read += len(m.all[i].text) + 16; m.read > maxRead {
			return errTooMuch
		}
		next, err := m.statement(i, to)
		if err != nil {
			var e *raised
			if errors.As(err, &e) && e.line == 0 {
				e.line = m.all[i].line
			}
			return err
		}
		i = next
	}
	return nil
}

// statement goes through the statement i, and returns which is next.
func (m *script) statement(i, to int) (int, error) {
	s := m.all[i]
	head, rest := word(s.text)
	if head == "async" {
		head, rest = word(rest)
	}
	body := func() error { return m.block(i+1, s.end) }
	switch head {
	case "if":
		return m.choose(i, to)
	case "try":
		return m.try(i, to)
	case "while":
		endless := literal(rest, nil)
		if endless == true || endless == int64(1) {
			return s.end, m.loop(-1, i+1, s.end, func(int64) {})
		}
		holds, sure, err := m.condition(rest)
		if err == nil && (holds || !sure) {
			err = m.loop(1, i+1, s.end, func(int64) {})
			m.forgetAll(i+1, s.end)
		}
		return s.end, err
	case "for":
		return s.end, m.each(rest, i+1, s.end)
	case "with":
		for _, item := range split(rest) {
			expr, name, _ := cut(item, " as ")
			v, err := m.eval(expr)
			if err != nil {
				return 0, err
			}
			if name != "" {
				m.known[name] = v
			}
		}
		return s.end, body()
	case "def":
		name, _ := word(rest)
		m.defs[name] = i
		return s.end, nil
	case "else", "finally": // of a loop, or of a try that went well
		return s.end, body()
	case "class", "except", "elif", "pass", "import", "from", "global", "nonlocal", "del", "assert":
		return s.end, nil
	case "break", "continue":
		return 0, leave(head)
	case "return":
		if _, err := m.eval(rest); err != nil {
			return 0, err
		}
		return 0, leave(head)
	case "raise":
		return 0, m.raises(rest)
	}
	return s.end, m.assign(s.text)
}

// choose goes through the first branch of an if whose condition is true.
func (m *script) choose(i, to int) (int, error) {
	from, certain, done := i, true, false
	for head := "if"; ; head, _ = word(m.all[i].text) {
		s := m.all[i]
		if _, rest := word(s.text); !done {
			holds, sure := true, true
			if head != "else" {
				var err error
				if holds, sure, err = m.condition(rest); err != nil {
					return 0, err
				}
			}
			if certain = certain && sure; !sure {
				m.unsure = m.unsure || m.leaves(i+1, s.end)
			}
			if done = holds; done {
				if err := m.block(i+1, s.end); err != nil {
					return 0, err
				}
			}
		}
		if i = s.end; i >= to || !m.is(i, "elif", "else") {
			break
		}
	}
	if !certain {
		m.forgetAll(from, i)
	}
	return i, nil
}

func (m *script) is(i int, heads ...string) bool {
	w, _ := word(m.all[i].text)
	for _, h := range heads {
		if w == h {
			return true
		}
	}
	return false
}

// leaves reports whether a block may leave the loop it is in.
func (m *script) leaves(from, to int) bool {
	for i := from; i < to; i++ {
		if m.is(i, "break", "return", "raise") || strings.Contains(m.all[i].text, "exit(") {
			return true
		}
	}
	return false
}

// condition goes through a condition. Without a literal that decides it, sure
// is false.
func (m *script) condition(s string) (holds, sure bool, err error) {
	if strings.HasPrefix(s, "__name__ ==") {
		return true, true, nil
	}
	v, err := m.eval(s)
	switch v := v.(type) {
	case bool:
		return v, true, err
	case int64:
		return v != 0, true, err
	case none:
		return false, true, err
	}
	return false, false, err
}

// try goes through a block, and for what it raises through the first clause,
// whatever that says that it catches.
func (m *script) try(i, to int) (int, error) {
	err := m.block(i+1, m.all[i].end)
	i = m.all[i].end
	var e *raised
	failed := errors.As(err, &e)
	for ; i < to && m.is(i, "except", "else", "finally"); i = m.all[i].end {
		s := m.all[i]
		head, rest := word(s.text)
		switch {
		case head == "except" && e != nil:
			_, name, _ := cut(rest, " as ")
			if name != "" {
				m.known[name] = e
			}
			outer := m.caught
			m.caught, e = e, nil
			err = m.block(i+1, s.end)
			m.caught = outer
		case head == "else" && !failed && err == nil:
			err = m.block(i+1, s.end)
		case head == "finally" && !errors.Is(err, errEnded):
			if after := m.block(i+1, s.end); after != nil {
				err = after
			}
		}
	}
	return i, err
}

// raises goes through a raise.
func (m *script) raises(s string) error {
	if s == "" && m.caught != nil {
		return m.caught
	}
	s, _, _ = cut(s, " from ")
	if e, ok := m.known[s].(*raised); ok {
		return e
	}
	class, args, _ := strings.Cut(s, "(")
	v, err := m.eval(strings.TrimSuffix(args, ")"))
	if err != nil {
		return err
	}
	if class == "SystemExit" {
		return m.exits(v)
	}
	if class == "" {
		class = "RuntimeError"
	}
	t, _ := show(v)
	return raise(class, "%s", t.first(1000))
}

// each goes through a for.
func (m *script) each(s string, from, to int) error {
	name, items, _ := cut(s, " in ")
	bind := func(v value) {
		m.forget(name)
		if w, rest := word(name); rest == "" && v != nil {
			m.known[w] = v
		}
	}
	if head, args := word(items); head == "range" {
		first, step := int64(0), int64(1)
		l, ok := literal("["+strings.Trim(args, "()")+"]", m.known).(list)
		var n [3]int64
		for i, v := range l {
			if i < 3 && ok {
				n[i], ok = v.(int64)
			}
		}
		last := n[0]
		if len(l) > 1 {
			first, last = n[0], n[1]
		}
		if len(l) > 2 {
			step = n[2]
		}
		const most = 1 << 60
		if ok && len(l) > 0 && len(l) <= 3 && step != 0 && max(first, -first, last, -last, step, -step) < most {
			count := max((last-first+step-step/max(step, -step))/step, 0)
			return m.loop(count, from, to, func(i int64) { bind(first + i*step) })
		}
	}
	v, err := m.eval(items)
	if err != nil {
		return err
	}
	if l, ok := v.(list); ok {
		return m.loop(int64(len(l)), from, to, func(i int64) { bind(l[i]) })
	}
	count := int64(1) // how often is not known
	if strings.HasPrefix(items, "itertools.count(") || strings.HasPrefix(items, "count(") || strings.HasPrefix(items, "iter(int,") {
		count = -1
	}
	err = m.loop(count, from, to, func(int64) { bind(nil) })
	m.forgetAll(from, to)
	return err
}

// loop goes through a block n times, or without end if n is negative. It stops
// when nothing more can be seen of it: of what grows, the end is reckoned; what
// only computes uses up the CPU time. What the passes that are left out would
// have assigned is not known.
func (m *script) loop(n int64, from, to int, bind func(int64)) error {
	p, waits := m.process, m.waits
	for i := int64(0); i != n; i++ {
		actions, tasks, memory, disk, waited := p.actions, p.tasks, p.memory, p.guest.files.used(), m.waits
		m.unsure, m.said = false, [2]text{}
		bind(i)
		err := m.block(from, to)
		var word leave
		if errors.As(err, &word) && word != "return" {
			err = nil
		}
		if errors.Is(err, errTooMuch) && n < 0 {
			if m.waits > waits {
				return p.idle()
			}
			return p.burn()
		}
		unsure := m.unsure
		if m.unsure = false; err != nil || word == "break" {
			return err
		}
		left := n - i - 1
		if unsure || left != 0 && p.actions == actions {
			m.forgetAll(from, to)
			if unsure || n >= 0 {
				return nil
			}
			return p.burn()
		}
		if n >= 0 && times(int64(p.actions-actions), left) <= int64(maxActions-p.actions) {
			continue
		}
		if n < 0 {
			left = 1 << 62
		}
		tasks, memory, disk = p.tasks-tasks, p.memory-memory, p.guest.files.used()-disk
		switch {
		case tasks > 0 && times(tasks, left) > p.limits().Pids-p.tasks:
			return p.bomb()
		case memory > 0 && times(memory, left) > p.limits().Memory-p.memory:
			return p.keep(p.limits().Memory)
		case disk > 0 && times(disk, left) > p.limits().Disk-p.guest.files.used():
			return p.guest.box.breach(backend.DiskLimit, p.limits().Disk+1, "files above the limit")
		case n >= 0 && m.waits == waited && m.said == [2]text{} && (tasks > 0 || memory > 0 || disk > 0):
			p.tasks, p.memory = p.tasks+times(tasks, left), p.memory+times(memory, left)
			p.guest.files.fill(times(disk, left))
			m.forgetAll(from, to)
			return nil
		case n < 0 && m.waits == waited && m.said[0].size()+m.said[1].size() > 0:
			return p.chatter(m.said[0], m.said[1])
		}
	}
	return nil
}

// assign goes through a statement that has no keyword.
func (m *script) assign(s string) error {
	for i, c := range outside(s) {
		if c != '=' || i == 0 {
			continue
		}
		if strings.HasPrefix(s[i:], "==") || strings.IndexByte("=!<>:", s[i-1]) >= 0 {
			break
		}
		target, augmented := strings.TrimSpace(s[:i]), ""
		if j := strings.LastIndexFunc(target, func(r rune) bool { return !strings.ContainsRune("+-*/%&|^@<>", r) }); j+1 < len(target) {
			target, augmented = strings.TrimSpace(target[:j+1]), target[j+1:]
		}
		target, _, _ = cut(target, ":")
		v, err := m.eval(s[i+1:])
		if err != nil {
			return err
		}
		if t, ok := v.(text); ok && augmented == "+" {
			if err := m.grows(t.size()); err != nil {
				return err
			}
		}
		m.forget(target)
		if w, rest := word(target); rest == "" && augmented == "" && v != nil {
			m.known[w] = v
		}
		return nil
	}
	_, err := m.eval(s)
	return err
}

// forgetAll makes the values of all names unknown that a block may assign.
func (m *script) forgetAll(from, to int) {
	for _, s := range m.all[from:to] {
		m.read += len(s.text)
		if head, rest := word(s.text); head == "for" {
			name, _, _ := cut(rest, " in ")
			m.forget(name)
		}
		if name, _, ok := cut(s.text, "="); ok {
			m.forget(strings.TrimRight(name, "+-*/%&|^@<> "))
		}
		for i := range outside(s.text) {
			if s.text[i] == '.' { // a method may change what it belongs to
				j := i
				for j > 0 && letter(s.text[j-1]) {
					j--
				}
				delete(m.known, s.text[j:i])
			}
		}
	}
}

// forget makes the values of the names in target unknown.
func (m *script) forget(target string) {
	for _, name := range strings.FieldsFunc(target, func(r rune) bool { return strings.ContainsRune("(),[] ", r) }) {
		delete(m.known, name)
	}
}
