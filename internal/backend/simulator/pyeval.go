package simulator

import (
	"errors"
	"strings"
)

// eval returns what is known of the value of e, and has the effects that are
// modelled. An error unwinds the model.
func (py *python) eval(e *expr) (value, error) {
	if py.depth++; py.depth > 20*maxDepth {
		py.depth--
		return unknown{}, nil
	}
	defer func() { py.depth-- }()
	if e.line > 0 {
		py.line = e.line
	}
	switch e.op {
	case "const":
		return e.val, nil
	case "name":
		if v, ok := py.vars[e.s]; ok {
			return v, nil
		}
		return ref{e.s}, nil
	case "attr":
		v, err := py.eval(e.kids[0])
		if err != nil {
			return nil, err
		}
		return py.attr(v, e.s), nil
	case "call":
		v, err := py.call(e)
		py.charge(v)
		return v, err
	case "index":
		return py.index(e)
	case "tuple", "list", "set":
		l := &list{kind: e.op}
		for _, k := range e.kids {
			v, err := py.eval(k)
			if err != nil {
				return nil, err
			}
			l.items = append(l.items, v)
		}
		return l, nil
	case "dict":
		d := &dict{}
		for i := 0; i+1 < len(e.kids); i += 2 {
			k, err := py.eval(e.kids[i])
			if err != nil {
				return nil, err
			}
			v, err := py.eval(e.kids[i+1])
			if err != nil {
				return nil, err
			}
			d.keys, d.values = append(d.keys, k), append(d.values, v)
		}
		return d, nil
	case "fstr":
		return py.fstring(e)
	case "star":
		if _, err := py.eval(e.kids[0]); err != nil {
			return nil, err
		}
		return unknown{}, nil
	case "walrus":
		v, err := py.eval(e.kids[1])
		if err == nil {
			py.bind(e.kids[0], v)
		}
		return v, err
	case "bin":
		a, err := py.eval(e.kids[0])
		if err != nil {
			return nil, err
		}
		b, err := py.eval(e.kids[1])
		if err != nil {
			return nil, err
		}
		v, err := py.binary(e.s, a, b)
		py.charge(v)
		return v, err
	case "unary":
		return py.unary(e)
	case "cmp":
		return py.compare(e)
	case "not", "and", "or", "cond":
		return py.logic(e)
	case "gen":
		l := &list{kind: "list"}
		err := py.generate(e, 1, func(v value) {
			if len(l.items) < maxItems {
				l.items = append(l.items, v)
			}
		})
		return l, err
	}
	return unknown{}, nil
}

// charge counts the making of a large value as the many steps that it is.
func (py *python) charge(v value) {
	switch v := v.(type) {
	case string:
		py.steps += len(v) >> 8
	case *list:
		py.steps += len(v.items) >> 4
	}
}

func (py *python) fstring(e *expr) (value, error) {
	var all value = ""
	for _, k := range e.kids {
		v, err := py.eval(k)
		if err != nil {
			return nil, err
		}
		switch v.(type) {
		case partial, blob:
		default:
			if s, ok := text(v); ok {
				v = s
			} else {
				v = unknown{}
			}
		}
		all = add(all, v)
	}
	return all, nil
}

func (py *python) unary(e *expr) (value, error) {
	v, err := py.eval(e.kids[0])
	if err != nil {
		return nil, err
	}
	switch n := v.(type) {
	case int64:
		switch e.s {
		case "-":
			return -n, nil
		case "+":
			return n, nil
		}
		return ^n, nil
	case float64:
		if e.s == "-" {
			return -n, nil
		}
		return n, nil
	}
	return unknown{}, nil
}

func (py *python) compare(e *expr) (value, error) {
	a, err := py.eval(e.kids[0])
	if err != nil {
		return nil, err
	}
	b, err := py.eval(e.kids[1])
	if err != nil {
		return nil, err
	}
	is, known := equal(a, b)
	x, xok := float(a)
	y, yok := float(b)
	switch {
	case known && (e.s == "==" || e.s == "is"):
		return is, nil
	case known && (e.s == "!=" || e.s == "is not"):
		return !is, nil
	case !xok || !yok:
		return unknown{}, nil
	}
	switch e.s {
	case "<":
		return x < y, nil
	case "<=":
		return x <= y, nil
	case ">":
		return x > y, nil
	case ">=":
		return x >= y, nil
	}
	return unknown{}, nil
}

func (py *python) logic(e *expr) (value, error) {
	a, err := py.eval(e.kids[0])
	if err != nil {
		return nil, err
	}
	is, known := truth(a)
	switch {
	case e.op == "cond" && is && known:
		return py.eval(e.kids[1])
	case e.op == "cond":
		return py.eval(e.kids[2])
	case !known:
		return unknown{}, nil
	case e.op == "not":
		return !is, nil
	case is == (e.op == "or"):
		return a, nil
	}
	return py.eval(e.kids[1])
}

// generate calls f with each item of a comprehension, from its loop n on.
func (py *python) generate(e *expr, n int, f func(value)) error {
	if n == len(e.kids) {
		v, err := py.eval(e.kids[0])
		if err == nil {
			f(v)
		}
		return err
	}
	loop := e.kids[n]
	v, err := py.eval(loop.kids[1])
	if err != nil {
		return err
	}
	return py.each(v, func(item value) error {
		if err := py.step(); err != nil {
			return err
		}
		py.bind(loop.kids[0], item)
		for _, cond := range loop.kids[2:] {
			c, err := py.eval(cond)
			if err != nil {
				return err
			}
			if is, known := truth(c); !is || !known {
				return nil
			}
		}
		return py.generate(e, n+1, f)
	})
}

func (py *python) index(e *expr) (value, error) {
	of, err := py.eval(e.kids[0])
	if err != nil {
		return nil, err
	}
	key, err := py.eval(e.kids[1])
	if err != nil {
		return nil, err
	}
	switch of := of.(type) {
	case *list:
		i, ok := integer(key)
		if n := int64(len(of.items)); ok && i < n && i >= -n {
			return of.items[(i+n)%n], nil
		}
	case *dict:
		for i, k := range of.keys {
			if is, known := equal(k, key); is && known {
				return of.values[i], nil
			}
		}
	}
	return unknown{}, nil
}

func (py *python) attr(v value, name string) value {
	switch v := v.(type) {
	case ref:
		full := v.name + "." + name
		if full == "os.environ" {
			return py.environ()
		}
		return ref{full}
	case unknown:
		return unknown{}
	case exception:
		return unknown{}
	}
	if c, ok := v.(class); ok && (name == "__name__" || name == "__qualname__") {
		return string(c)
	}
	return method{v, name}
}

// class is type(e) of an exception, by its name.
type class string

// environ is the environment that the guest gives a workload.
func (py *python) environ() *dict {
	d := &dict{}
	for _, kv := range [][2]string{{"PATH", "/run/enclave/bin:/usr/local/bin:/usr/bin:/bin"}, {"HOME", "/work"}, {"LANG", "C.UTF-8"}, {"TMPDIR", "/tmp"}} {
		d.set(kv[0], kv[1])
	}
	for k, v := range py.env {
		d.set(k, v)
	}
	return d
}

// call evaluates the arguments, then calls what is known.
func (py *python) call(e *expr) (value, error) {
	if n := e.kids[0]; n.op == "name" && py.defs[n.s] != nil {
		return py.invoke(py.defs[n.s], e.kids[1:])
	}
	fn, err := py.eval(e.kids[0])
	if err != nil {
		return nil, err
	}
	if py.reduces(fn, e) {
		return py.reduce(fn.(ref).name, e.kids[1])
	}
	var args []value
	named := map[string]value{}
	for _, k := range e.kids[1:] {
		v := k
		if k.op == "kw" {
			v = k.kids[0]
		}
		x, err := py.eval(v)
		if err != nil {
			return nil, err
		}
		if k.op == "kw" {
			named[k.s] = x
		} else {
			args = append(args, x)
		}
	}
	switch fn := fn.(type) {
	case ref:
		return py.builtin(fn.name, args, named)
	case method:
		return py.method(fn, args)
	}
	return unknown{}, nil
}

// reduces reports whether e folds a comprehension, which then needs no list.
func (py *python) reduces(fn value, e *expr) bool {
	r, ok := fn.(ref)
	return ok && (r.name == "sum" || r.name == "any" || r.name == "all") && len(e.kids) == 2 && e.kids[1].op == "gen"
}

func (py *python) reduce(name string, gen *expr) (value, error) {
	if name != "sum" {
		_, err := py.eval(gen)
		return unknown{}, err
	}
	var total value = int64(0)
	var failed error
	err := py.generate(gen, 1, func(v value) {
		if failed == nil {
			total, failed = py.binary("+", total, v)
		}
	})
	return total, errors.Join(err, failed)
}

// invoke calls a function of the code's own. It has the variables of its caller,
// and its own parameters for as long as it runs.
func (py *python) invoke(f *stmt, args []*expr) (value, error) {
	if py.depth > 10*maxDepth {
		return nil, raise("RecursionError", "maximum recursion depth exceeded")
	}
	bound := map[string]value{}
	for i, a := range args {
		v, name := a, ""
		if a.op == "kw" {
			v, name = a.kids[0], a.s
		} else if i < len(f.params) {
			name = f.params[i]
		}
		x, err := py.eval(v)
		if err != nil {
			return nil, err
		}
		bound[name] = x
	}
	old := map[string]value{}
	for _, name := range f.params {
		if v, ok := py.vars[name]; ok {
			old[name] = v
		}
		if v, ok := bound[name]; ok {
			py.vars[name] = v
		} else {
			py.vars[name] = unknown{}
		}
	}
	py.depth += 5 // a call nests deeper than an expression
	err := py.all(f.body)
	py.depth -= 5
	for _, name := range f.params {
		if v, ok := old[name]; ok {
			py.vars[name] = v
		} else {
			delete(py.vars, name)
		}
	}
	var r returned
	if errors.As(err, &r) {
		return r.v, nil
	}
	return nil, err
}

// last returns what follows the last dot.
func last(name string) string { return name[strings.LastIndexByte(name, '.')+1:] }
