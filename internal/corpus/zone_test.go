package corpus

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// accept serves a listener: it hears all that comes, and answers HTTP.
func (s *sinks) accept(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		s.wait.Go(func() {
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(time.Minute)) // a run that is over keeps nobody
			if conn.LocalAddr().(*net.TCPAddr).Port == tricklePort {
				trickle(conn)
				return
			}
			all := &stream{s: s, r: conn, at: "tcp " + conn.LocalAddr().String()}
			in := bufio.NewReader(all)
			for {
				r, err := http.ReadRequest(in)
				if err != nil {
					_, _ = io.Copy(io.Discard, all)
					return
				}
				_, _ = io.Copy(io.Discard, r.Body)
				if _, err := io.WriteString(conn, "HTTP/1.1 204 No Content\r\n\r\n"); err != nil {
					return
				}
			}
		})
	}
}

// A stream tells sinks what is read from it, also what comes in pieces.
type stream struct {
	s    *sinks
	r    io.Reader
	at   string
	tail []byte
}

func (st *stream) Read(b []byte) (int, error) {
	n, err := st.r.Read(b)
	window := append(st.tail, b[:n]...)
	st.s.tell(st.at, window)
	st.tail = slices.Clone(window[max(0, len(window)-128):])
	st.s.mu.Lock()
	st.s.bytes += int64(n)
	st.s.mu.Unlock()
	return n, err
}

// A zone is the lab's name server. The gateway asks it on this host's loopback,
// apart from the sinks, so that a question of its own is no packet there; a
// workload without a sandbox finds it on every address.
type zone struct {
	addr    string
	servers []*dns.Server

	mu    sync.Mutex
	asked map[string]int // questions of type A since the run began
}

// answers are what names resolve to. Of several lists each question gets the next,
// and the last for ever. A name that ends in a dot is an alias.
var answers = map[string][][]string{
	allowedHost:                   {{allowedIP}},
	"x." + allowedHost:            {{allowedIP}},
	evilHost:                      {{evilIP}},
	"evil" + allowedHost:          {{evilIP}},
	allowedHost + ".evil.example": {{evilIP}},
	allowedHost + ".evil":         {{evilIP}},
	"allowed-example.com":         {{evilIP}},
	"rebind." + allowedHost:       {{allowedIP}, {"127.0.0.1"}, {metadataIP}, {"0.0.0.0"}, {privateIP}, {"::1"}, {"::ffff:127.0.0.1"}, {"64:ff9b::a9fe:a9fe"}},
	"mixed." + allowedHost:        {{allowedIP, metadataIP}},
	"alias." + allowedHost:        {{"metadata.google.internal."}},
	"alias2." + allowedHost:       {{"control.internal."}},
	"metadata.google.internal":    {{metadataIP}},
	"metadata.goog":               {{metadataIP}},
	"metadata":                    {{metadataIP}},
	"instance-data":               {{metadataIP}},
	"kubernetes.default.svc":      {{privateIP}},
	"control.internal":            {{privateIP}},
}

func newZone(t testing.TB) *zone {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	z := &zone{addr: pc.LocalAddr().String(), asked: map[string]int{}}
	z.serve(pc)
	t.Cleanup(func() {
		for _, s := range z.servers {
			if err := s.Shutdown(); err != nil {
				t.Error(err)
			}
		}
	})
	return z
}

// serve answers on pc, and returns once it does.
func (z *zone) serve(pc net.PacketConn) {
	started := make(chan struct{})
	s := &dns.Server{PacketConn: pc, Handler: z, NotifyStartedFunc: func() { close(started) }}
	z.servers = append(z.servers, s)
	go func() { _ = s.ActivateAndServe() }() // ends with Shutdown
	<-started
}

func (z *zone) resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "udp", z.addr)
	}}
}

// ServeDNS answers from answers. Each name below cdn of the allowed host exists.
func (z *zone) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	r := new(dns.Msg)
	r.SetReply(q)
	r.RecursionAvailable = true
	r.Rcode = dns.RcodeNameError
	if len(q.Question) == 1 {
		asked := q.Question[0]
		if list, ok := z.next(strings.TrimSuffix(strings.ToLower(asked.Name), "."), asked.Qtype); ok {
			r.Rcode = dns.RcodeSuccess
			r.Answer = records(asked.Name, list, asked.Qtype)
		}
	}
	_ = w.WriteMsg(r) // who asked and went away has no answer
}

// next returns what a question is answered with. The two questions of one look-up,
// for A and AAAA, come in any order: only the former counts.
func (z *zone) next(name string, qtype uint16) ([]string, bool) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if strings.HasSuffix(name, ".cdn."+allowedHost) {
		return []string{allowedIP}, true
	}
	lists, ok := answers[name]
	if !ok {
		return nil, false
	}
	list := lists[min(z.asked[name], len(lists)-1)]
	if qtype == dns.TypeA {
		z.asked[name]++
	}
	return list, true
}

// begin has each name begin with its first list again.
func (z *zone) begin() {
	z.mu.Lock()
	defer z.mu.Unlock()
	clear(z.asked)
}

// records returns list as records of one type, an alias with what it leads to.
func records(name string, list []string, qtype uint16) (all []dns.RR) {
	for _, s := range list {
		head := dns.RR_Header{Name: name, Class: dns.ClassINET}
		if strings.HasSuffix(s, ".") {
			head.Rrtype = dns.TypeCNAME
			all = append(all, &dns.CNAME{Hdr: head, Target: s})
			all = append(all, records(s, answers[strings.TrimSuffix(s, ".")][0], qtype)...)
			continue
		}
		switch a := netip.MustParseAddr(s); {
		case a.Is4() && qtype == dns.TypeA:
			head.Rrtype = dns.TypeA
			all = append(all, &dns.A{Hdr: head, A: a.AsSlice()})
		case a.Is6() && qtype == dns.TypeAAAA:
			head.Rrtype = dns.TypeAAAA
			all = append(all, &dns.AAAA{Hdr: head, AAAA: a.AsSlice()})
		}
	}
	return all
}
