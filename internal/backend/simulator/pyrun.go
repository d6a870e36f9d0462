package simulator

import (
	"errors"
	"fmt"
	"strings"

	"github.com/enclave-run/enclave/internal/wire"
)

// A python is the state of one modelled interpreter.
type python struct {
	*process
	vars  map[string]value
	defs  map[string]*stmt
	line  int
	steps int
	depth int
}

// Code that takes more steps than this without doing anything that can be seen
// is taken for a loop without end.
const maxSteps = 200_000

// What unwinds a model: a raised exception, an exit, or control flow.
type raised struct{ exception }

func (r raised) Error() string { return r.class + ": " + r.text }

type returned struct{ v value }

func (returned) Error() string { return "return outside a function" }

var (
	errBreak    = errors.New("break outside a loop")
	errContinue = errors.New("continue outside a loop")
)

func raise(class, format string, args ...any) error {
	return raised{exception{class, fmt.Sprintf(format, args...)}}
}

// runPython models code and returns its exit status.
func runPython(p *process, code string) int {
	py := &python{process: p, vars: map[string]value{}, defs: map[string]*stmt{}}
	for k, name := range map[string]string{"__name__": "__main__", "__file__": "/run/enclave/main.py"} {
		py.vars[k] = name
	}
	err := py.all(parsePython(code))
	var e exit
	var r raised
	switch {
	case err == nil:
		return 0
	case errors.As(err, &e):
		return e.code
	case errors.As(err, &r):
		p.print(wire.Stderr, fmt.Sprintf("Traceback (most recent call last):\n  File \"/run/enclave/main.py\", line %d, in <module>\n%s: %s\n", py.line, r.class, r.text))
	}
	return 1
}

func (py *python) all(body []*stmt) error {
	for _, s := range body {
		if err := py.do(s); err != nil {
			return err
		}
	}
	return nil
}

// step counts work, so that a model ends.
func (py *python) step() error {
	if err := py.running(); err != nil {
		return err
	}
	if py.steps++; py.steps > maxSteps {
		return py.burn()
	}
	return nil
}

func (py *python) do(s *stmt) error {
	if err := py.step(); err != nil {
		return err
	}
	if s.line > 0 {
		py.line = s.line
	}
	switch s.op {
	case "expr":
		_, err := py.eval(s.value)
		return err
	case "assign":
		return py.assign(s)
	case "if":
		v, err := py.eval(s.value)
		if err != nil {
			return err
		}
		if is, known := truth(v); is && known {
			return py.all(s.body)
		}
		return py.all(s.orelse)
	case "while":
		return py.while(s)
	case "for":
		return py.loop(s)
	case "try":
		return py.try(s)
	case "with":
		v, err := py.eval(s.value)
		if err != nil {
			return err
		}
		for _, t := range s.targets {
			py.bind(t, v)
		}
		return py.all(s.body)
	case "def":
		py.defs[s.name] = s
		delete(py.vars, s.name)
	case "import":
		for _, i := range s.imports {
			py.vars[i[0]] = ref{i[1]}
		}
	case "return":
		var v value
		if s.value != nil {
			var err error
			if v, err = py.eval(s.value); err != nil {
				return err
			}
		}
		return returned{v}
	case "raise":
		return py.raise(s)
	case "assert":
		v, err := py.eval(s.value)
		if err != nil {
			return err
		}
		if l, ok := v.(*list); ok && l.kind == "tuple" && len(l.items) == 2 {
			v = l.items[0]
		}
		if is, known := truth(v); known && !is {
			return raise("AssertionError", "")
		}
	case "break":
		return errBreak
	case "continue":
		return errContinue
	}
	return nil
}

func (py *python) raise(s *stmt) error {
	if s.value == nil {
		return raise("RuntimeError", "No active exception to reraise")
	}
	v, err := py.eval(s.value)
	if err != nil {
		return err
	}
	switch v := v.(type) {
	case exception:
		if v.class == "SystemExit" {
			return exit{1}
		}
		return raised{v}
	case ref:
		return raise(v.name, "")
	}
	return raise("Exception", "")
}

func (py *python) while(s *stmt) error {
	for {
		v, err := py.eval(s.value)
		if err != nil {
			return err
		}
		if is, known := truth(v); !is || !known {
			return py.all(s.orelse)
		}
		if err := py.step(); err != nil {
			return err
		}
		if err := py.all(s.body); err == errBreak {
			return nil
		} else if err != nil && err != errContinue {
			return err
		}
	}
}

func (py *python) loop(s *stmt) error {
	v, err := py.eval(s.value)
	if err != nil {
		return err
	}
	err = py.each(v, func(item value) error {
		if err := py.step(); err != nil {
			return err
		}
		py.bind(s.targets[0], item)
		if err := py.all(s.body); err != errContinue {
			return err
		}
		return nil
	})
	if err == errBreak {
		return nil
	}
	if err != nil {
		return err
	}
	return py.all(s.orelse)
}

// each calls f with each item of v. Of what is not known there is none.
func (py *python) each(v value, f func(value) error) error {
	switch v := v.(type) {
	case *list:
		for _, x := range v.items {
			if err := f(x); err != nil {
				return err
			}
		}
	case *dict:
		for _, x := range v.keys {
			if err := f(x); err != nil {
				return err
			}
		}
	case span:
		n := v.len()
		for i := int64(0); i < n; i++ {
			if err := f(v.from + i*v.step); err != nil {
				return err
			}
		}
	case string:
		for _, r := range v {
			if err := f(string(r)); err != nil {
				return err
			}
		}
	case ref:
		if v.name == "itertools.count()" {
			for i := int64(0); ; i++ {
				if err := f(i); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (py *python) try(s *stmt) error {
	err := py.all(s.body)
	var r raised
	if errors.As(err, &r) {
		for _, h := range s.handlers {
			if !py.catches(h, r.class) {
				continue
			}
			if h.name != "" {
				py.vars[h.name] = r.exception
			}
			err = py.all(h.body)
			var again raised
			if errors.As(err, &again) && again.class == "RuntimeError" && strings.HasPrefix(again.text, "No active") {
				err = r // a bare raise
			}
			break
		}
	} else if err == nil {
		err = py.all(s.orelse)
	}
	if err != errEnded {
		if ferr := py.all(s.final); ferr != nil {
			return ferr
		}
	}
	return err
}

// bases are the classes above those that a model raises.
func bases(class string) []string {
	oserror := []string{"OSError", "IOError", "error", "EnvironmentError", "Exception", "BaseException"}
	switch class {
	case "urllib.error.URLError":
		return append([]string{"URLError"}, oserror...)
	case "requests.exceptions.ConnectionError":
		return append([]string{"ConnectionError", "RequestException"}, oserror...)
	case "socket.gaierror":
		return append([]string{"gaierror"}, oserror...)
	case "ConnectionRefusedError":
		return append([]string{"ConnectionRefusedError", "ConnectionError"}, oserror...)
	case "TimeoutError":
		return append([]string{"TimeoutError", "timeout"}, oserror...)
	case "FileNotFoundError", "PermissionError", "OSError":
		return append([]string{class}, oserror...)
	}
	return []string{class, "Exception", "BaseException"}
}

func (py *python) catches(h *handler, class string) bool {
	if h.types == nil {
		return true
	}
	v, err := py.eval(h.types)
	if err != nil {
		return false
	}
	types := []value{v}
	if l, ok := v.(*list); ok {
		types = l.items
	}
	for _, t := range types {
		r, ok := t.(ref)
		if !ok {
			continue
		}
		name := r.name[strings.LastIndexByte(r.name, '.')+1:]
		for _, b := range bases(class) {
			if name == b {
				return true
			}
		}
	}
	return false
}

func (py *python) assign(s *stmt) error {
	v, err := py.eval(s.value)
	if err != nil {
		return err
	}
	if s.aug != "" {
		old, err := py.eval(s.targets[0])
		if err != nil {
			return err
		}
		if n, ok := size(v); ok && s.aug == "+" && n > maxText {
			if err := py.keep(n); err != nil {
				return err
			}
		}
		if l, ok := old.(*list); ok && s.aug == "+" {
			return py.each(v, func(x value) error { return py.push(l, x) })
		}
		if v, err = py.binary(s.aug, old, v); err != nil {
			return err
		}
	}
	for _, t := range s.targets {
		py.bind(t, v)
	}
	return nil
}

// push appends to a list. Lists grow in a model only as far as is of use.
func (py *python) push(l *list, x value) error {
	n, ok := size(x)
	if !ok {
		n = 8
	}
	if err := py.keep(n + 8); err != nil {
		return err
	}
	if len(l.items) < maxItems {
		l.items = append(l.items, x)
	}
	return nil
}

func (py *python) bind(t *expr, v value) {
	switch t.op {
	case "name":
		delete(py.defs, t.s)
		py.vars[t.s] = v
	case "tuple", "list":
		l, ok := v.(*list)
		for i, k := range t.kids {
			if ok && i < len(l.items) && len(l.items) == len(t.kids) {
				py.bind(k, l.items[i])
			} else {
				py.bind(k, unknown{})
			}
		}
	case "index":
		of, err := py.eval(t.kids[0])
		key, err2 := py.eval(t.kids[1])
		if d, ok := of.(*dict); ok && err == nil && err2 == nil && len(d.keys) < maxItems {
			d.set(key, v)
		} else if l, ok := of.(*list); ok {
			if i, ok := integer(key); ok && i >= 0 && i < int64(len(l.items)) {
				l.items[i] = v
			}
		}
	}
}

func (d *dict) set(key, v value) {
	for i, k := range d.keys {
		if is, known := equal(k, key); is && known {
			d.values[i] = v
			return
		}
	}
	d.keys, d.values = append(d.keys, key), append(d.values, v)
}
