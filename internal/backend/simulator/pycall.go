package simulator

import (
	"errors"
	"slices"
	"strings"

	"github.com/enclave-run/enclave/internal/wire"
)

// arg returns the nth argument, or the one of that name, or nil.
func arg(args []value, named map[string]value, n int, name string) value {
	if n < len(args) {
		return args[n]
	}
	return named[name]
}

// builtin calls what the code did not define. What is not known has no effect.
func (py *python) builtin(name string, args []value, named map[string]value) (value, error) {
	if v, ok, err := py.effect(name, args, named); ok {
		return v, err
	}
	var a value = unknown{}
	if len(args) > 0 {
		a = args[0]
	}
	switch name {
	case "range":
		return ranged(args), nil
	case "itertools.count":
		return ref{"itertools.count()"}, nil
	case "len":
		if n, ok := length(a); ok {
			return n, nil
		}
	case "str", "repr":
		if s, ok := format(a, name == "repr"); ok {
			return s, nil
		}
		if p, ok := a.(partial); ok && name == "str" {
			return p, nil
		}
	case "int":
		if n, ok := integer(a); ok {
			return n, nil
		}
		if s, ok := a.(string); ok {
			return number(strings.TrimSpace(s)), nil
		}
	case "bytes", "bytearray", "os.urandom", "random.randbytes":
		if n, ok := integer(a); ok {
			v := repeat("\x00", n)
			return v, py.fits(v)
		}
		return a, nil
	case "sorted", "list", "tuple", "set", "reversed":
		return listed(name, a), nil
	case "sum":
		return py.sum(a)
	case "type":
		if e, ok := a.(exception); ok {
			return class(last(e.class)), nil
		}
	case "dict":
		d := &dict{}
		for k, v := range named {
			d.set(k, v)
		}
		return d, nil
	case "json.dumps":
		if s, ok := toJSON(a); ok {
			return s, nil
		}
	case "os.getuid", "os.geteuid", "os.getgid":
		return int64(workloadUID), nil
	case "urllib.request.Request":
		return a, nil
	case "urllib.parse.quote", "urllib.parse.urlencode":
		return unknown{}, nil
	case "asyncio.run":
		return a, nil
	}
	if strings.HasSuffix(name, "Error") || strings.HasSuffix(name, "Exception") || name == "SystemExit" || name == "KeyboardInterrupt" {
		s, _ := text(a)
		return exception{name, s}, nil
	}
	return unknown{}, nil
}

func ranged(args []value) value {
	n := make([]int64, len(args))
	for i, a := range args {
		v, ok := integer(a)
		if !ok || v > 1<<53 || v < -1<<53 {
			return unknown{}
		}
		n[i] = v
	}
	switch len(n) {
	case 1:
		return span{0, n[0], 1}
	case 2:
		return span{n[0], n[1], 1}
	case 3:
		if n[2] != 0 {
			return span{n[0], n[1], n[2]}
		}
	}
	return unknown{}
}

func listed(name string, a value) value {
	kind := name
	if name == "sorted" || name == "reversed" {
		kind = "list"
	}
	var items []value
	switch a := a.(type) {
	case *list:
		items = slices.Clone(a.items)
	case *dict:
		items = slices.Clone(a.keys)
	case span:
		if n := a.len(); n <= maxItems {
			for i := range n {
				items = append(items, a.from+i*a.step)
			}
		} else {
			return unknown{}
		}
	default:
		return unknown{}
	}
	switch name {
	case "reversed":
		slices.Reverse(items)
	case "sorted":
		for _, x := range items {
			if _, ok := x.(string); !ok {
				return &list{items, kind} // an order of other things is not modelled
			}
		}
		slices.SortFunc(items, func(a, b value) int { return strings.Compare(a.(string), b.(string)) })
	}
	return &list{items, kind}
}

func (py *python) sum(a value) (value, error) {
	var total value = int64(0)
	err := py.each(a, func(v value) error {
		if err := py.step(); err != nil {
			return err
		}
		var err error
		total, err = py.binary("+", total, v)
		return err
	})
	return total, err
}

// effect calls what does something to the world. It reports false for what it
// does not know.
func (py *python) effect(name string, args []value, named map[string]value) (v value, known bool, err error) {
	a := arg(args, named, 0, "url")
	switch name {
	case "print":
		return nil, true, py.printed(args, named)
	case "sys.stdout.write", "sys.stderr.write":
		if s, ok := a.(string); ok {
			err = py.write(name == "sys.stderr.write", s)
		}
		return nil, true, err
	case "enclave.result":
		return nil, true, py.result(a)
	case "sys.exit", "exit", "quit", "os._exit":
		return nil, true, py.exit(a)
	case "time.sleep", "asyncio.sleep":
		if f, ok := float(a); ok {
			py.steps = 0
			err = py.sleep(seconds(f))
		}
		return nil, true, err
	case "os.fork", "os.forkpty":
		return py.tasks + 100, true, py.fork()
	case "os.waitpid", "os.wait":
		py.wait()
		pid, _ := integer(a)
		return &list{[]value{pid, int64(0)}, "tuple"}, true, nil
	case "os.pipe":
		return &list{[]value{int64(3), int64(4)}, "tuple"}, true, nil
	case "subprocess.Popen":
		return object{kind: "task"}, true, py.fork()
	case "subprocess.run", "subprocess.call", "subprocess.check_output", "subprocess.check_call", "os.system", "os.popen":
		if err = py.fork(); err == nil {
			py.wait()
		}
		return unknown{}, true, err
	case "threading.Thread", "multiprocessing.Process":
		return object{kind: "thread"}, true, nil
	case "open", "io.open":
		v, err = py.open(a, arg(args, named, 1, "mode"))
		return v, true, err
	case "urllib.request.urlopen":
		return unknown{}, true, py.get(a, "urllib.error.URLError")
	case "requests.Session", "requests.session", "httpx.Client":
		return ref{"requests"}, true, nil
	case "requests.request", "httpx.request":
		return unknown{}, true, py.get(arg(args, named, 1, "url"), "requests.exceptions.ConnectionError")
	case "http.client.HTTPConnection", "http.client.HTTPSConnection":
		return connection(name, args, named), true, nil
	case "socket.socket":
		return socketOf(args), true, nil
	case "socket.create_connection":
		return object{kind: "socket"}, true, py.connect(a, false, nil)
	case "socket.gethostbyname", "socket.getaddrinfo":
		if host, ok := arg(args, named, 0, "host").(string); ok {
			py.steps = 0
			_, err = py.guest.net.lookup(py.halt, host)
			err = py.networkError(err, "socket.gaierror")
		}
		return unknown{}, true, err
	}
	if verb, ok := strings.CutPrefix(strings.Replace(name, "httpx.", "requests.", 1), "requests."); ok {
		switch verb {
		case "get", "post", "put", "patch", "delete", "head", "options":
			return unknown{}, true, py.get(a, "requests.exceptions.ConnectionError")
		}
	}
	return nil, false, nil
}

func (py *python) write(stderr bool, s string) error {
	py.steps = 0 // who prints without end is stopped by what it prints
	if stderr {
		return py.print(wire.Stderr, s)
	}
	return py.print(wire.Stdout, s)
}

// printed prints what is known of the arguments.
func (py *python) printed(args []value, named map[string]value) error {
	var parts []string
	for _, a := range args {
		if s, ok := text(a); ok {
			parts = append(parts, s)
		}
	}
	if len(parts) == 0 && len(args) > 0 {
		return nil
	}
	sep, end := " ", "\n"
	if s, ok := named["sep"].(string); ok {
		sep = s
	}
	if s, ok := named["end"].(string); ok {
		end = s
	}
	return py.write(named["file"] == value(ref{"sys.stderr"}), strings.Join(parts, sep)+end)
}

// result gives the result if its value is known.
func (py *python) result(v value) error {
	s, ok := toJSON(v)
	if !ok {
		return nil
	}
	err := py.give(s)
	if err != nil && !errors.Is(err, errEnded) {
		return raise("ValueError", "%v", err)
	}
	return err
}

func (py *python) exit(v value) error {
	if n, ok := integer(v); ok {
		return exit{int(n & 0xff)}
	}
	if s, ok := v.(string); ok {
		return errors.Join(py.write(true, s+"\n"), exit{1})
	}
	return exit{0}
}

// get fetches a URL, of which the end may be unknown.
func (py *python) get(v value, class string) error {
	var err error
	py.steps = 0
	switch v := v.(type) {
	case string:
		err = py.fetch(v)
	case partial:
		err = py.fetch(v.prefix)
	default:
		return nil
	}
	return py.networkError(err, class)
}

// networkError is err as the exception that Python raises for it.
func (py *python) networkError(err error, class string) error {
	if err == nil || !isNetwork(err) {
		return err
	}
	what := "[Errno 111] Connection refused"
	switch {
	case errors.Is(err, errNoName):
		what = "[Errno -2] Name or service not known"
	case errors.Is(err, errTimeout):
		what = "timed out"
	case errors.Is(err, errUnparsed):
		return raise("ValueError", "unknown url type")
	}
	switch class {
	case "urllib.error.URLError":
		what = "<urlopen error " + what + ">"
	case "":
		class = "ConnectionRefusedError"
		if errors.Is(err, errNoName) {
			class = "socket.gaierror"
		} else if errors.Is(err, errTimeout) {
			class = "TimeoutError"
		}
	}
	return raise(class, "%s", what)
}

func connection(name string, args []value, named map[string]value) value {
	host, ok := arg(args, named, 0, "host").(string)
	if !ok {
		return unknown{}
	}
	o := object{kind: "http", host: host, port: 80, tls: strings.HasSuffix(name, "HTTPSConnection")}
	if o.tls {
		o.port = 443
	}
	if n, ok := integer(arg(args, named, 1, "port")); ok && n > 0 && n < 1<<16 {
		o.port = uint16(n)
	}
	return o
}

func socketOf(args []value) value {
	for _, a := range args {
		if r, ok := a.(ref); ok && last(r.name) == "SOCK_DGRAM" {
			return object{kind: "datagram"}
		}
	}
	return object{kind: "socket"}
}

// connect makes a connection to the address v, a tuple of host and port.
func (py *python) connect(v value, datagram bool, payload []byte) error {
	l, ok := v.(*list)
	if !ok || len(l.items) < 2 {
		return nil
	}
	host, hok := l.items[0].(string)
	port, pok := integer(l.items[1])
	if !hok || !pok || port < 1 || port > 65535 {
		return nil
	}
	py.steps = 0
	var err error
	if datagram {
		err = py.guest.net.datagram(py.halt, host, uint16(port), payload)
	} else {
		err = py.guest.net.dial(py.halt, host, uint16(port), nil)
	}
	return py.networkError(err, "")
}

// method calls a method of a value.
func (py *python) method(m method, args []value) (value, error) {
	var a value
	if len(args) > 0 {
		a = args[0]
	}
	switch of := m.of.(type) {
	case object:
		return py.objectMethod(of, m.name, args)
	case *list:
		switch m.name {
		case "append", "add":
			return nil, py.push(of, a)
		case "extend":
			return nil, py.each(a, func(v value) error { return py.push(of, v) })
		}
	case *dict:
		switch m.name {
		case "keys":
			return &list{slices.Clone(of.keys), "list"}, nil
		case "values":
			return &list{slices.Clone(of.values), "list"}, nil
		case "items":
			l := &list{kind: "list"}
			for i := range of.keys {
				l.items = append(l.items, &list{[]value{of.keys[i], of.values[i]}, "tuple"})
			}
			return l, nil
		case "get":
			for i, k := range of.keys {
				if is, known := equal(k, a); is && known {
					return of.values[i], nil
				}
			}
			return unknown{}, nil
		}
	case string:
		return stringMethod(of, m.name, a), nil
	case partial:
		if m.name == "encode" || m.name == "decode" {
			return of, nil
		}
	case blob:
		if m.name == "encode" || m.name == "decode" {
			return of, nil
		}
	}
	return unknown{}, nil
}

func stringMethod(s, name string, a value) value {
	switch name {
	case "encode", "decode":
		return s
	case "strip":
		return strings.TrimSpace(s)
	case "upper":
		return strings.ToUpper(s)
	case "lower":
		return strings.ToLower(s)
	case "format":
		prefix, _, _ := strings.Cut(s, "{")
		return partial{prefix}
	case "join":
		l, ok := listed("list", a).(*list)
		if !ok {
			return unknown{}
		}
		var all value = ""
		for i, x := range l.items {
			if i > 0 {
				all = add(all, s)
			}
			all = add(all, x)
		}
		return all
	}
	return unknown{}
}
