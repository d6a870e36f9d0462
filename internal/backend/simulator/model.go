package simulator

import (
	"bytes"
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/enclave-run/enclave/internal/wire"
)

// What is modelled, line by line.
//
// Python: literals, and names that were given one; print, writes to stdout and
// stderr, exits, raise and try; enclave.result; time.sleep; connections, datagrams
// and look-ups by urllib, requests, http.client and socket to literal hosts; files
// under /work and /tmp; os.fork, threads and child processes as tasks, and literal
// commands of theirs as below; large strings and what is appended as memory; for
// over literals and ranges; while True, of which the limit that it breaks first is
// reckoned from one pass. An if whose condition is no literal is not entered. Of
// all that a program computes, what two numbers make and two sums are known.
//
// Node and bash: literal output, the exit status, the result, URLs that are
// fetched, sleeping, and the usual fork bomb and endless loop.
//
// Models are bounded: see maxLines and maxActions. Code that goes beyond them
// fails, and says so.
//
// A command (argv) is modelled if it is one of the interpreters with code on its
// command line.

// modelOf returns the model of what r starts, which returns the exit status.
func modelOf(r wire.StartRequest) (func(*process) int, error) {
	language, code := r.Language, r.Code
	if len(r.Argv) > 0 {
		language, code = "", ""
		name := path.Base(r.Argv[0])
		if i := slices.IndexFunc(r.Argv, func(a string) bool { return a == "-c" || a == "-e" }); i > 0 && i+1 < len(r.Argv) {
			code = r.Argv[i+1]
		}
		switch {
		case strings.HasPrefix(name, "python"):
			language = "python"
		case name == "node", name == "nodejs":
			language = "node"
		case name == "bash", name == "sh":
			language = "bash"
		case name == "sleep" && len(r.Argv) == 2, name == "true", name == "false", name == "echo":
			language, code = "bash", strings.Join(append([]string{name}, r.Argv[1:]...), " ")
		}
	}
	switch language {
	case "python":
		return func(p *process) int { return runPython(p, code) }, nil
	case "node":
		return func(p *process) int { return runLines(p, code, node) }, nil
	case "bash":
		return func(p *process) int { return runLines(p, code, bash) }, nil
	case "":
		return func(*process) int { return 0 }, nil
	}
	return nil, &wire.CallError{Code: wire.CodeNoInterpreter, Detail: fmt.Sprintf("%q", language)}
}

// fetch makes the connection that a client of this URL makes.
func (p *process) fetch(raw string) error {
	scheme, host, port, target, err := splitURL(raw)
	if err != nil {
		return err
	}
	hello := []byte("GET " + target + " HTTP/1.1\r\nHost: " + host + "\r\nConnection: close\r\n\r\n")
	if scheme == "https" {
		hello = clientHello(host)
	}
	return p.dial(host, port, hello)
}

// fetchAll fetches each URL in s. What the network answers, and not the end of
// the sandbox, is what refused makes of it.
func (p *process) fetchAll(s string, refused func(error) error) error {
	for _, u := range webAddresses().FindAllString(s, 16) {
		err := p.fetch(u)
		if errors.Is(err, errNoName) || errors.Is(err, errRefused) || errors.Is(err, errTimeout) || errors.Is(err, errUnparsed) {
			err = refused(err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// dial makes a connection and says hello.
func (p *process) dial(host string, port uint16, hello []byte) error {
	if err := p.spend(); err != nil {
		return err
	}
	return p.guest.net.dial(p.halt, host, port, hello)
}

// datagram sends a datagram.
func (p *process) datagram(host string, port uint16, payload []byte) error {
	if err := p.spend(); err != nil {
		return err
	}
	return p.guest.net.datagram(p.halt, host, port, payload)
}

// lookup asks for a name's address.
func (p *process) lookup(name string) error {
	if err := p.spend(); err != nil {
		return err
	}
	_, err := p.guest.net.lookup(p.halt, name)
	return err
}

var urlForm = lazily(`(?s)^(https?)://(?:[^/?#@]*@)?(?:\[([^\]]+)\]|([^/?#:]+))(?::(\d{0,5}))?(?:/([^?#]*))?(\?[^#]*)?(?:#.*)?$`)

// splitURL reads a URL of which the end may be unknown.
func splitURL(raw string) (scheme, host string, port uint16, target string, err error) {
	g := urlForm().FindStringSubmatch(raw)
	if g == nil {
		return "", "", 0, "", errUnparsed
	}
	n, err := strconv.ParseUint(cmp.Or(g[4], map[string]string{"http": "80", "https": "443"}[g[1]]), 10, 16)
	if err != nil {
		return "", "", 0, "", errUnparsed
	}
	// What a line of a request can't hold is not sent.
	target = strings.Map(func(r rune) rune {
		if r <= ' ' || r >= 0x7f {
			return -1
		}
		return r
	}, "/"+g[5]+g[6])
	return g[1], g[2] + g[3], uint16(n), target, nil
}

// clientHello returns the first bytes of a TLS client that wants host.
func clientHello(host string) []byte {
	rec := &recorder{}
	tls.Client(rec, &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12}).Handshake()
	return rec.Bytes()
}

// A recorder is a connection to nobody.
type recorder struct {
	net.Conn
	bytes.Buffer
}

func (r *recorder) Read([]byte) (int, error)    { return 0, io.EOF }
func (r *recorder) Write(b []byte) (int, error) { return r.Buffer.Write(b) }

// seconds is f seconds, within what a timer takes.
func seconds(f float64) time.Duration {
	const most = 1 << 31
	if !(f > 0) {
		return 0
	}
	return time.Duration(min(f, most) * float64(time.Second))
}
