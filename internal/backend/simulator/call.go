package simulator

import (
	"errors"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// A thing is what a call of known meaning gives.
type thing struct {
	kind string // file, http or task
	name string // of a file, or the host
	port uint16
	tls  bool
}

// An argument is one of a call. Its value is nil if it is not known.
type argument struct {
	name, text string
	value      value
}

func pick(args []argument, n int, name string) argument {
	for _, a := range args {
		if a.name == name && name != "" {
			return a
		}
	}
	if n < len(args) && args[n].name == "" {
		return args[n]
	}
	return argument{}
}

// eval goes through an expression: the calls in it, from left to right, inner
// ones first. It returns the expression's value, or nil.
func (m *script) eval(s string) (value, error) {
	s = strings.TrimSpace(s)
	if v := literal(s, m.known); v != nil || s == "" {
		return v, m.fits(v)
	}
	if m.depth++; m.depth > 3*maxDepth {
		return nil, errTooMuch
	}
	defer func() { m.depth-- }()
	var last value // of the call that ends at i
	whole, dotted := true, false
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == '\'' || c == '"':
			if i = quoted(s, i); i < 0 {
				return nil, nil
			}
			last, whole = nil, false
		case letter(c):
			j := i
			for j < len(s) && (letter(s[j]) || s[j] == '.') {
				j++
			}
			name := s[i:j]
			k := j
			for k < len(s) && s[k] == ' ' {
				k++
			}
			switch {
			case name == "lambda":
				return nil, nil
			case k < len(s) && s[k] == '(':
				inner, end := inside(s, k)
				args, err := m.arguments(inner)
				if err != nil {
					return nil, err
				}
				of := last
				if dotted {
					name = "()." + name
				} else {
					of = nil
				}
				if last, err = m.call(of, name, args); err != nil {
					return nil, err
				}
				i = end
			default:
				i, last = j, nil
				whole = whole && name == "await"
			}
			dotted = false
		default:
			if dotted = c == '.'; !dotted && c != ' ' {
				last, whole = nil, false
			}
			i++
		}
	}
	if !whole {
		last = nil
		start, _, _ := cut(s, "+")
		switch v := literal(start, m.known).(type) {
		case text:
			last = prefix(v.first(maxStatement))
		case prefix:
			last = v
		}
	}
	return last, m.fits(last)
}

func (m *script) arguments(s string) ([]argument, error) {
	var args []argument
	for _, part := range split(s) {
		a := argument{text: part}
		if name, rest := word(part); name != "" && strings.HasPrefix(rest, "=") && !strings.HasPrefix(rest, "==") {
			a.name, a.text = name, strings.TrimSpace(rest[1:])
		}
		var err error
		if a.value, err = m.eval(a.text); err != nil {
			return nil, err
		}
		args = append(args, a)
	}
	return args, nil
}

// fits ends the sandbox if v is larger than its memory.
func (m *script) fits(v value) error {
	if t, ok := v.(text); ok && t.size() > m.limits().Memory-m.memory {
		return m.keep(t.size())
	}
	return nil
}

// grows takes memory for good.
func (m *script) grows(n int64) error {
	return errors.Join(m.spend(), m.keep(max(n, 64)))
}

// call is what the model knows of calls. Of methods it knows the last name, so
// that it need not know how a module was imported.
func (m *script) call(of value, name string, args []argument) (value, error) {
	object, method := "", name
	if i := strings.LastIndexByte(name, '.'); i >= 0 {
		object, method = name[:i], name[i+1:]
	}
	if of == nil && object != "" {
		of = m.known[object]
		switch of.(type) {
		case list, dict:
			delete(m.known, object) // it may be changed
		}
	}
	for _, a := range args {
		switch m.known[a.text].(type) {
		case list, dict:
			delete(m.known, a.text)
		}
	}
	if t, ok := of.(*thing); ok {
		if v, known, err := m.method(t, method, args); known {
			return v, err
		}
	}
	if at, ok := m.defs[name]; ok {
		return nil, m.function(at, args)
	}
	a := pick(args, 0, "")
	n, number := a.value.(int64)
	switch name {
	case "print":
		return nil, m.prints(args)
	case "enclave.result":
		return nil, m.results(pick(args, 0, "value").value)
	case "open", "io.open":
		return m.open(pick(args, 0, "file"), pick(args, 1, "mode"))
	case "bytearray", "bytes", "os.urandom", "random.randbytes":
		if number {
			return text{"\x00", max(n, 0), true}, nil
		}
	case "exit", "quit", "sys.exit", "os._exit":
		return nil, m.exits(a.value)
	case "os.system", "os.popen":
		return nil, m.shell(args, true)
	case "os.write":
		if s, ok := pick(args, 1, "").value.(text); ok && (n == 1 || n == 2) {
			return nil, m.says(n == 2, s)
		}
	}
	switch method {
	case "write":
		if s, ok := a.value.(text); ok && strings.Contains(object, "std") {
			return nil, m.says(strings.Contains(object, "stderr"), s)
		}
	case "append", "extend", "add":
		s, _ := a.value.(text)
		return nil, m.grows(s.size())
	case "sleep":
		m.waits++
		d, ok := a.value.(float64)
		if ok = ok || number; ok {
			return nil, m.pause(seconds(d + float64(n)))
		}
	case "fork", "forkpty":
		return int64(100), m.fork()
	case "wait", "waitpid":
		m.wait()
	case "Thread", "Process":
		return &thing{kind: "task"}, nil
	case "start_new_thread":
		return nil, m.fork()
	case "Popen":
		return &thing{kind: "task"}, m.shell(args, false)
	case "call", "check_call", "check_output", "run":
		if object == "subprocess" || object == "" {
			return nil, m.shell(args, true)
		}
	case "Request":
		return pick(args, 0, "url").value, nil
	case "urlopen":
		return nil, m.get(pick(args, 0, "url"), "urllib.error.URLError")
	case "get", "post", "put", "patch", "delete", "head", "options":
		if object != "" {
			return nil, m.get(pick(args, 0, "url"), "requests.exceptions.ConnectionError")
		}
	case "request":
		return nil, m.get(pick(args, 1, "url"), "requests.exceptions.ConnectionError")
	case "HTTPConnection", "HTTPSConnection":
		if host, ok := pick(args, 0, "host").value.(text); ok {
			t := &thing{kind: "http", name: host.first(255), port: 80, tls: method == "HTTPSConnection"}
			if t.tls {
				t.port = 443
			}
			if n, ok := pick(args, 1, "port").value.(int64); ok {
				t.port = uint16(n)
			}
			return t, nil
		}
	case "create_connection", "connect", "connect_ex":
		if host, port, ok := address(a.value); ok {
			err := m.reaches(m.dial(host, port, nil), "")
			if _, refused := err.(*raised); refused && method == "connect_ex" {
				err = nil
			}
			return nil, err
		}
	case "sendto":
		if len(args) > 1 {
			host, port, ok := address(args[len(args)-1].value)
			s, _ := a.value.(text)
			if ok {
				return nil, m.reaches(m.datagram(host, port, []byte(s.first(1000))), "")
			}
		}
	case "getaddrinfo", "gethostbyname", "gethostbyname_ex":
		if host, ok := pick(args, 0, "host").value.(text); ok {
			return nil, m.reaches(m.lookup(host.first(255)), "socket.gaierror")
		}
	}
	return nil, nil
}

// method is what the model knows of the methods of things.
func (m *script) method(t *thing, method string, args []argument) (v value, known bool, err error) {
	a := pick(args, 0, "")
	switch t.kind + "." + method {
	case "file.write":
		if s, ok := a.value.(text); ok {
			name, err := place(t.name)
			if err != nil {
				return nil, true, raise("OSError", "[Errno 30] Read-only file system: '%s'", t.name)
			}
			b := ""
			if s.size() <= maxStatement {
				b = s.first(maxStatement)
			}
			return nil, true, errors.Join(m.spend(), m.store(name, []byte(b), s.size()))
		}
	case "file.read":
		if s, ok := m.guest.files.content(t.name); ok && len(s) <= maxStatement {
			return text{s, 1, false}, true, nil
		}
	case "task.start":
		return nil, true, m.fork()
	case "task.join", "task.wait", "task.communicate":
		m.wait()
	case "http.request", "http.connect":
		hello := []byte("GET / HTTP/1.1\r\nHost: " + t.name + "\r\nConnection: close\r\n\r\n")
		if t.tls {
			hello = clientHello(t.name)
		}
		return nil, true, m.reaches(m.dial(t.name, t.port, hello), "")
	default:
		return nil, false, nil
	}
	return nil, true, nil
}

// function goes through a function of the code's own.
func (m *script) function(at int, args []argument) error {
	if m.depth++; m.depth > 2*maxDepth {
		m.depth--
		return raise("RecursionError", "maximum recursion depth exceeded")
	}
	defer func() { m.depth-- }()
	s := m.all[at]
	inner, _ := inside(s.text, max(strings.IndexByte(s.text, '('), 0))
	outer := m.known
	m.known = maps.Clone(outer)
	m.read += len(outer)
	defer func() {
		m.known = outer
		m.forgetAll(at+1, s.end) // some may be the caller's
	}()
	for i, param := range split(inner) {
		name, rest := word(param)
		_, initial, _ := cut(rest, "=")
		a := pick(args, i, name)
		if a.text == "" {
			a.value = literal(initial, m.known)
		}
		if name != "" {
			m.known[name] = a.value
		}
	}
	err := m.block(at+1, s.end)
	var word leave
	if errors.As(err, &word) {
		return nil
	}
	return err
}

// open opens a file of /work or /tmp. Of the image's own files the model knows
// which are not for the workload, and which no image has.
func (m *script) open(file, mode argument) (value, error) {
	s, ok := file.value.(text)
	if !ok {
		return nil, nil
	}
	raw := s.first(4096)
	name, err := place(raw)
	if how, _ := mode.value.(text); strings.ContainsAny(how.first(8), "wax+") {
		if err != nil {
			return nil, raise("OSError", "[Errno 30] Read-only file system: '%s'", raw)
		}
		if !strings.Contains(how.s, "a") {
			m.guest.files.truncate(name)
		}
		return &thing{kind: "file", name: name}, m.spend()
	}
	if err == nil {
		if _, ok := m.guest.files.content(name); ok {
			return &thing{kind: "file", name: name}, nil
		}
	}
	switch {
	case raw == "/etc/shadow", raw == "/etc/gshadow", strings.HasPrefix(raw, "/root"):
		return nil, raise("PermissionError", "[Errno 13] Permission denied: '%s'", raw)
	case slices.Contains([]string{"/etc/passwd", "/etc/group", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"}, raw),
		strings.HasPrefix(raw, "/proc/self/"), strings.HasPrefix(raw, "/dev/"):
		return nil, nil
	}
	return nil, raise("FileNotFoundError", "[Errno 2] No such file or directory: '%s'", raw)
}

// shell goes through a command for another program, whose exit status does not
// end this one. waited says that this one waits for its end.
func (m *script) shell(args []argument, waited bool) error {
	if err := m.fork(); err != nil {
		return err
	}
	command := ""
	switch v := pick(args, 0, "args").value.(type) {
	case text:
		command = v.first(maxStatement)
	case list:
		for _, x := range v {
			t, _ := x.(text)
			command += t.first(1000) + " "
		}
	}
	m.waits++
	err := bashLine(m.process, strings.TrimSpace(command))
	var e exit
	if errors.As(err, &e) {
		err = nil
	}
	if waited {
		m.wait()
	}
	return err
}

var openEnd = regexp.MustCompile(`[{%].*`)

// get opens a URL. Of one that is put together, what stands before the first
// unknown part counts if the host is in it.
func (m *script) get(a argument, class string) error {
	u, whole := openEnd.ReplaceAllString(urlLiteral.FindString(a.text), ""), false
	switch v := a.value.(type) {
	case text:
		u, whole = v.first(maxStatement), true
	case prefix:
		u = string(v)
	}
	// A host that goes on in what is not known is another host.
	if _, rest, _ := strings.Cut(u, "://"); !whole && !strings.ContainsAny(rest, "/?#") {
		return nil
	}
	if !strings.HasPrefix(u, "http://") && !strings.HasPrefix(u, "https://") {
		return nil
	}
	return m.reaches(m.fetch(u), class)
}

func address(v value) (string, uint16, bool) {
	l, ok := v.(list)
	if !ok || len(l) < 2 {
		return "", 0, false
	}
	host, hok := l[0].(text)
	port, pok := l[1].(int64)
	return host.first(255), uint16(port), hok && pok && port > 0 && port < 1<<16
}

// reaches turns the network's answer into the exception that Python raises.
func (m *script) reaches(err error, class string) error {
	m.waits++
	if err == nil || !isNetwork(err) {
		return err
	}
	what, own := "[Errno 111] Connection refused", "ConnectionRefusedError"
	switch {
	case errors.Is(err, errNoName):
		what, own = "[Errno -2] Name or service not known", "socket.gaierror"
	case errors.Is(err, errTimeout):
		what, own = "timed out", "TimeoutError"
	case errors.Is(err, errUnparsed):
		return raise("ValueError", "unknown url type")
	}
	if class == "" {
		class = own
	}
	if class == "urllib.error.URLError" {
		what = "<urlopen error " + what + ">"
	}
	return raise(class, "%s", what)
}
