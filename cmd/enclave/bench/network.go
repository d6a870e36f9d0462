package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/backend/all"
	"github.com/enclave-run/enclave/internal/egress"
	"github.com/enclave-run/enclave/internal/gateway"
	"github.com/enclave-run/enclave/internal/server"
)

// sinkHost resolves to an address for documentation (RFC 5737), which the
// gateway of these measurements alone dials, and which leads to the sink.
const sinkHost = "sink.example.com"

var sinkAddr = netip.MustParseAddr("192.0.2.1")

// A sink serves on loopback: it sends as many bytes as it is asked for, and
// then echoes what it is sent.
type sink struct {
	l    net.Listener
	took chan time.Duration // from each request to the end of what it asked for
}

func newSink() (*sink, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &sink{l: l, took: make(chan time.Duration, 16)}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go s.serve(conn)
		}
	}()
	return s, nil
}

// serve sends the number of bytes that the first line asks for; the other side
// closes once it has them all. Asked for none it echoes.
func (s *sink) serve(conn net.Conn) {
	defer conn.Close()
	r := bufio.NewReader(conn)
	line, err := r.ReadString('\n')
	if err != nil {
		return
	}
	n, err := strconv.ParseInt(strings.TrimSpace(line), 10, 64)
	if err != nil {
		return
	}
	if n == 0 {
		_, _ = io.Copy(conn, r)
		return
	}
	start := time.Now()
	chunk := make([]byte, 256<<10)
	for n > 0 {
		k, err := conn.Write(chunk[:min(n, int64(len(chunk)))])
		if err != nil {
			return
		}
		n -= int64(k)
	}
	if _, err := r.ReadByte(); errors.Is(err, io.EOF) {
		s.took <- time.Since(start)
	}
}

func (s *sink) port() int { return s.l.Addr().(*net.TCPAddr).Port }

func (s *sink) LookupNetIP(_ context.Context, network, host string, _ func(sent, received int) error) ([]netip.Addr, error) {
	if strings.TrimSuffix(host, ".") != sinkHost || network == "ip6" {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	return []netip.Addr{sinkAddr}, nil
}

func (s *sink) DialContext(ctx context.Context, network, _ string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, network, s.l.Addr().String())
}

// boot starts a control plane whose gateway, in this process, leads to the sink.
func (s *sink) boot(ctx context.Context, c Config) (*server.Booted, error) {
	table, err := egress.Standard()
	if err != nil {
		return nil, err
	}
	table = table.Opened(netip.PrefixFrom(sinkAddr, 32))
	g, err := gateway.New(gateway.Config{Resolver: s, Dialer: s, Table: table})
	if err != nil {
		return nil, err
	}
	return c.Boot(ctx, server.Boot{Kind: all.Default(), Gateway: g, Table: &table})
}

// request runs code in a sandbox that may reach the sink.
func (s *sink) request(code string) enclave.SessionRequest {
	r := enclave.SessionRequest{
		Code:   fmt.Sprintf("HOST, PORT = %q, %d\n%s\nenclave.result(measure())\n", sinkHost, s.port(), code),
		Egress: enclave.Egress{Mode: enclave.Allowlist, Allow: []string{fmt.Sprintf("%s:%d", sinkHost, s.port())}},
	}
	r.Limits.EgressBytes = 10 * bulk
	r.Limits.CPUMillis = 2000
	return r
}

// onHost runs the same code on the host, over loopback.
func (s *sink) onHost(ctx context.Context, code string) (float64, error) {
	full := fmt.Sprintf("HOST, PORT = '127.0.0.1', %d\n%s\nprint(measure())\n", s.port(), code)
	out, err := exec.CommandContext(ctx, "python3", "-c", full).Output()
	if err != nil {
		return 0, skip("no python3 on this host to compare with")
	}
	return strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
}

const bulk = 1_000_000_000

var receive = fmt.Sprintf(`
import socket
def measure():
    s = socket.create_connection((HOST, PORT))
    want, got, buf = %d, 0, bytearray(1 << 20)
    s.sendall(b"%%d\n" %% want)
    while got < want:
        n = s.recv_into(buf)
        if n == 0:
            raise SystemExit("the connection ended early")
        got += n
    s.close()
    return got
`, bulk)

const pings = `
import socket, time
def measure():
    s = socket.create_connection((HOST, PORT))
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    s.sendall(b"0\n")
    took = []
    for _ in range(500):
        t = time.perf_counter()
        s.sendall(b"x")
        if s.recv(1) != b"x":
            raise SystemExit("no echo")
        took.append(time.perf_counter() - t)
    return sorted(took)[len(took) // 2] * 1000
`

// throughput has a sandbox receive a gigabyte over an allowed connection. The
// clock is the sink's.
func throughput(ctx context.Context, c Config) ([]Result, error) {
	gbits := func(s *sink) float64 { return float64(bulk) * 8 / 1e9 / (<-s.took).Seconds() }
	in, host, err := throughSink(ctx, c, receive,
		func(s *sink, _ enclave.Result) (float64, error) { return gbits(s), nil },
		func(s *sink, _ float64) float64 { return gbits(s) })
	if err != nil {
		return nil, err
	}
	return []Result{compared("gateway_throughput", in, host, "Gbit/s", "one allowed connection into a sandbox; against loopback without one")}, nil
}

// latency is what a round trip of one byte costs more in a sandbox than on the
// host.
func latency(ctx context.Context, c Config) ([]Result, error) {
	in, host, err := throughSink(ctx, c, pings,
		func(_ *sink, r enclave.Result) (ms float64, err error) { return ms, json.Unmarshal(r.JSON, &ms) },
		func(_ *sink, ms float64) float64 { return ms })
	if err != nil {
		return nil, err
	}
	return []Result{compared("gateway_added_latency", in-host, host, "ms", "p50 round trip more than loopback; against loopback")}, nil
}

// throughSink runs code in a sandbox and on the host, in turn, and returns the
// median figure of each. The figures are read off what each left.
func throughSink(ctx context.Context, c Config, code string,
	sandboxed func(*sink, enclave.Result) (float64, error), onHost func(*sink, float64) float64) (in, host float64, err error) {
	s, err := newSink()
	if err != nil {
		return 0, 0, err
	}
	defer s.l.Close()
	p, err := s.boot(ctx, c)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, p.Close(context.WithoutCancel(ctx))) }()
	var ins, hosts []float64
	for range 3 {
		r, err := runOne(ctx, p, s.request(code))
		if err != nil {
			return 0, 0, err
		}
		v, err := sandboxed(s, r)
		if err != nil {
			return 0, 0, err
		}
		ins = append(ins, v)
		if v, err = s.onHost(ctx, code); err != nil {
			return 0, 0, err
		}
		hosts = append(hosts, onHost(s, v))
	}
	return middle(ins), middle(hosts), nil
}
