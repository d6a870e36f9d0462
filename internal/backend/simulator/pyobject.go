package simulator

import (
	"errors"
	"slices"
	"strings"
)

// open opens a file of /work or /tmp, or one of those that every image has.
func (py *python) open(name, mode value) (value, error) {
	raw, ok := name.(string)
	if !ok {
		return unknown{}, nil
	}
	m, _ := mode.(string)
	if strings.ContainsAny(m, "wax+") {
		p, err := place(raw)
		if err != nil {
			return nil, raise("OSError", "[Errno 30] Read-only file system: '%s'", raw)
		}
		if !strings.Contains(m, "a") {
			py.guest.files.truncate(p)
		}
		return object{kind: "file", path: p, mode: m}, nil
	}
	p, err := place(raw)
	if err == nil {
		if _, ok := py.guest.files.content(p); ok {
			return object{kind: "file", path: p, mode: m}, nil
		}
	}
	switch {
	case raw == "/etc/shadow" || raw == "/etc/gshadow" || strings.HasPrefix(raw, "/root"):
		return nil, raise("PermissionError", "[Errno 13] Permission denied: '%s'", raw)
	case slices.Contains([]string{"/etc/passwd", "/etc/group", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"}, raw),
		strings.HasPrefix(raw, "/proc/self/"), strings.HasPrefix(raw, "/dev/"):
		return object{kind: "file", path: raw, mode: "unknown"}, nil
	}
	return nil, raise("FileNotFoundError", "[Errno 2] No such file or directory: '%s'", raw)
}

func (py *python) objectMethod(o object, name string, args []value) (value, error) {
	var a, b value
	if len(args) > 0 {
		a = args[0]
	}
	if len(args) > 1 {
		b = args[1]
	}
	switch o.kind + "." + name {
	case "file.read", "file.readline", "file.readlines":
		if s, ok := py.guest.files.content(o.path); ok && name == "read" && o.mode != "unknown" && len(s) <= maxText {
			return s, nil
		}
	case "file.write":
		n, ok := size(a)
		if !ok {
			return unknown{}, nil
		}
		s, _ := a.(string)
		py.steps = min(py.steps, maxSteps/2) // a disk that fills is no loop without end
		return n, py.store(o.path, []byte(s), n)
	case "thread.start":
		return nil, py.fork()
	case "thread.join", "task.wait", "task.communicate":
		py.wait()
	case "http.request":
		hello := []byte("GET / HTTP/1.1\r\nHost: " + o.host + "\r\nConnection: close\r\n\r\n")
		if o.tls {
			hello = clientHello(o.host)
		}
		py.steps = 0
		return nil, py.networkError(py.guest.net.dial(py.halt, o.host, o.port, hello), "")
	case "socket.connect":
		return nil, py.connect(a, false, nil)
	case "socket.connect_ex":
		err := py.connect(a, false, nil)
		var r raised
		if errors.As(err, &r) {
			return int64(111), nil
		}
		return int64(0), err
	case "datagram.sendto":
		payload, _ := a.(string)
		return nil, py.connect(b, true, []byte(payload))
	}
	return unknown{}, nil
}
