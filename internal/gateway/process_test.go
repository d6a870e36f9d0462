package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/egress"
	"github.com/enclave-run/enclave/internal/testenv"
)

// nameServer serves names on loopback and returns its address.
func nameServer(t testing.TB, names map[string]string) string {
	t.Helper()
	return countedNameServer(t, names, new(atomic.Int64), new(atomic.Int64))
}

// countedNameServer counts the bytes of the questions and answers too.
func countedNameServer(t testing.TB, names map[string]string, asked, answered *atomic.Int64) string {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		r := new(dns.Msg)
		r.SetReply(q)
		a, ok := names[q.Question[0].Name]
		if !ok {
			r.Rcode = dns.RcodeNameError
		} else if q.Question[0].Qtype == dns.TypeA {
			r.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: net.ParseIP(a)}}
		}
		asked.Add(int64(q.Len() + questionHeaders))
		answered.Add(int64(r.Len() + questionHeaders))
		w.WriteMsg(r)
	})}
	go s.ActivateAndServe()
	t.Cleanup(func() { s.Shutdown() })
	return conn.LocalAddr().String()
}

// needProcess skips t where a gateway process cannot be.
func needProcess(t testing.TB) {
	t.Helper()
	testenv.Need(t, "root") // to give a process another user
	if underRace {
		t.Skip("the race detector needs more memory than the process may have")
	}
}

// spawn starts a real gateway process.
func spawn(t testing.TB, args ...string) *Process {
	t.Helper()
	needProcess(t)
	p, err := Spawn(t.Context(), SpawnConfig{
		Argv: append([]string{"/proc/self/exe", "gateway-process"}, args...),
		UID:  64741, GID: 64741, Sessions: 4, Memory: minMemory, Files: 1024, Stderr: os.Stderr,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func TestProcessServesLikeAGateway(t *testing.T) {
	sink := echo(t)
	port := netip.MustParseAddrPort(sink).Port()
	var asked, answered atomic.Int64
	p := spawn(t, "loopback", countedNameServer(t, map[string]string{"api.example.com.": "127.0.0.1"}, &asked, &answered))
	rule := netip.AddrPortFrom(public, port).String() // only for the port
	rule = "api.example.com:" + rule[strings.LastIndexByte(rule, ':')+1:]
	c := serveOn(t, p, nil, grant(rule), newRecord())
	conn, err := c.dial(netip.AddrPortFrom(c.address("api.example.com"), port).String())
	if err != nil {
		t.Fatal(err)
	}
	conn.Write([]byte("hello"))
	conn.CloseWrite()
	if got, err := io.ReadAll(conn); err != nil || string(got) != "hello" {
		t.Fatalf("got %q, %v", got, err)
	}
	c.lookup("evil.example.com", dns.TypeA)
	if _, err := c.dial("169.254.169.254:80"); err == nil {
		t.Fatal("the metadata service answered")
	}
	got := c.end()
	want := []string{
		`egress_allowed ` + rule + ` tcp allowed rule="` + rule + `" ×1`,
		`egress_denied evil.example.com:0 dns not_allowed rule="" ×1`,
		`egress_denied 169.254.169.254:80 tcp not_allowed rule="" ×1`,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	spent := egress.Traffic{In: 5 + c.asked.In + answered.Load(), Out: 5 + c.asked.Out + asked.Load()}
	if c.err != nil || asked.Load() == 0 || c.result != spent {
		t.Errorf("traffic %+v, %v, want %+v", c.result, c.err, spent)
	}
}

func TestProcessDeathFailsItsSessions(t *testing.T) {
	p := spawn(t, "system")
	c := serveOn(t, p, nil, grant(), newRecord())
	c.lookup("evil.example.com", dns.TypeA) // it runs
	unix.Kill(p.Pid(), unix.SIGKILL)
	<-p.Done()
	<-c.done
	if c.err == nil {
		t.Error("Serve succeeded")
	}
	if p.Err() == nil {
		t.Error("no reason")
	}
	core, _ := socketPair(t)
	if _, err := p.Serve(t.Context(), core, testSession, grant(), newRecord()); err == nil {
		t.Error("a dead process serves")
	}
}

func TestProcessEndsWhenStopped(t *testing.T) {
	p := spawn(t, "system")
	c := serveOn(t, p, nil, grant(), newRecord())
	c.lookup("evil.example.com", dns.TypeA)
	c.udp("8.8.8.8:53", []byte("x"))
	for len(c.rec.lines()) < 2 {
		<-c.rec.grew
	}
	c.udp("8.8.8.8:53", []byte("x")).Close()
	c.lookup("evil.example.com", dns.TypeA) // answered after the datagram was counted
	c.cancel()
	<-c.done
	if c.err != nil {
		t.Fatal(c.err)
	}
	want := []string{
		`egress_denied evil.example.com:0 dns not_allowed rule="" ×1`,
		`egress_denied 8.8.8.8:53 udp protocol rule="" ×1`,
		`egress_denied 8.8.8.8:53 udp protocol rule="" ×1`,
	}
	if d := cmp.Diff(want, c.rec.lines()); d != "" {
		t.Error(d)
	}
}

func TestProcessThatCannotRecordEndsTheSession(t *testing.T) {
	p := spawn(t, "system")
	rec := newRecord()
	rec.fail = errors.New("the disk is full")
	c := serveOn(t, p, nil, grant(), rec)
	c.udp("8.8.8.8:53", []byte("x"))
	<-c.done
	if c.err == nil || !strings.Contains(c.err.Error(), "the disk is full") {
		t.Errorf("err = %v", c.err)
	}
}

// rogue is a gateway process that does what none may.
func rogue(what string) error {
	switch what {
	case "unconfined":
		control, err := connOf(controlFD)
		if err != nil {
			return err
		}
		control.Read(make([]byte, maxSetup))
		control.Write([]byte(ready))
		_, err = control.Read(make([]byte, 1))
		return err
	}
	control, err := connOf(controlFD)
	if err != nil {
		return err
	}
	if _, err := prepare(control, System); err != nil {
		return err
	}
	control.Write([]byte(ready))
	switch what {
	case "probe":
		control.Read(make([]byte, 1))
		control.Write([]byte(probe(os.Args[3])))
		_, err := control.Read(make([]byte, 1))
		return err
	case "deaf":
		for { // until it is killed; select {} would be noticed as a deadlock
			time.Sleep(time.Hour)
		}
	case "hungry":
		if _, err := receiveSession(control); err != nil {
			return err
		}
		os.Stderr.Close() // the runtime's last words are long
		for ate := [][]byte(nil); len(ate) < 64; {
			b := make([]byte, 64<<20)
			for i := 0; i < len(b); i += 4096 {
				b[i] = 1
			}
			ate = append(ate, b)
		}
		_, err := control.Read(make([]byte, 1)) // it was not stopped
		return err
	}
	session, err := receiveSession(control)
	if err != nil {
		return err
	}
	box := &mailbox{conn: session.stream}
	var o order
	box.receive(&o, maxOrder)
	good := attempt{Type: audit.EgressDenied, Host: "a", Protocol: "tcp", Reason: egress.NotAllowed, Count: 1}
	say := func(change func(a *attempt)) error {
		a := good
		change(&a)
		return box.send(report{Attempt: &a})
	}
	switch what {
	case "another event":
		err = say(func(a *attempt) { a.Type = audit.LimitExceeded })
	case "allowed without a rule":
		err = say(func(a *attempt) { a.Type, a.Reason, a.Port, a.Rule = audit.EgressAllowed, egress.Allowed, 443, "evil" })
	case "long host":
		err = say(func(a *attempt) { a.Host = strings.Repeat("a", 254) })
	case "unprintable host":
		err = say(func(a *attempt) { a.Host = "a\x1b[2J" })
	case "unknown reason":
		err = say(func(a *attempt) { a.Reason = "because" })
	case "unknown protocol":
		err = say(func(a *attempt) { a.Protocol = "quic" })
	case "no count":
		err = say(func(a *attempt) { a.Count = 0 })
	case "too many":
		for range maxRecords + 1 {
			if err := box.send(report{Attempt: &good}); err != nil {
				return err
			}
			box.receive(&o, maxOrder)
		}
	case "nothing":
		err = box.send(report{})
	case "negative traffic":
		err = box.send(report{Done: &done{Traffic: egress.Traffic{In: -1}}})
	}
	if err != nil {
		return err
	}
	_, err = control.Read(make([]byte, 1)) // until it is killed
	return err
}

func TestProcessThatBreaksItsRulesIsKilled(t *testing.T) {
	for _, what := range []string{
		"another event", "allowed without a rule", "long host", "unprintable host", "unknown reason",
		"unknown protocol", "no count", "too many", "nothing", "negative traffic",
	} {
		t.Run(what, func(t *testing.T) {
			p := spawn(t, what)
			rec := newRecord()
			core, guest := socketPair(t)
			defer guest.Close()
			if _, err := p.Serve(t.Context(), core, testSession, grant(), rec); err == nil {
				t.Error("Serve succeeded")
			}
			<-p.Done()
			if n := len(rec.lines()); what == "too many" && n != maxRecords || what != "too many" && n != 0 {
				t.Errorf("%d events were recorded", n)
			}
		})
	}
}

// A process that stands still must hold up neither the start of a session, of
// which no socket buffers the whole grant, nor its end.
func TestProcessThatStandsStillIsKilled(t *testing.T) {
	many := make([]string, 30_000)
	for i := range many {
		many[i] = fmt.Sprintf("host-%d.example.com", i)
	}
	for name, allow := range map[string][]string{"it does not take the grant": many, "it does not take the stop": nil} {
		t.Run(name, func(t *testing.T) {
			p := spawn(t, "deaf")
			p.step = 10 * time.Millisecond
			ctx, stop := context.WithCancel(t.Context())
			core, guest := socketPair(t)
			defer guest.Close()
			if allow == nil {
				stop()
			}
			defer stop()
			if _, err := p.Serve(ctx, core, testSession, grant(allow...), newRecord()); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("err = %v", err)
			}
			<-p.Done()
		})
	}
}

func TestUnconfinedProcessIsNotUsed(t *testing.T) {
	needProcess(t)
	_, err := Spawn(t.Context(), SpawnConfig{
		Argv: []string{"/proc/self/exe", "gateway-process", "unconfined"},
		UID:  64741, GID: 64741, Sessions: 4, Memory: minMemory, Files: 1024,
	})
	if err == nil || !strings.Contains(err.Error(), "not confined") {
		t.Errorf("err = %v", err)
	}
}

func TestSpawnRefusesRoot(t *testing.T) {
	for _, c := range []SpawnConfig{
		{},
		{Argv: []string{"/bin/true"}, GID: 1, Sessions: 4, Memory: minMemory, Files: 1024},
		{Argv: []string{"/bin/true"}, UID: 1, Sessions: 4, Memory: minMemory, Files: 1024},
		{Argv: []string{"/bin/true"}, UID: 1, GID: 1, Sessions: 4, Files: 1024},
		{Argv: []string{"/bin/true"}, UID: 1, GID: 1, Sessions: 4, Memory: minMemory},
		{Argv: []string{"/bin/true"}, UID: 1, GID: 1, Memory: minMemory, Files: 1024},
	} {
		if p, err := Spawn(t.Context(), c); err == nil {
			p.Close()
			t.Errorf("%+v was started", c)
		}
	}
}

func TestSpawnThatNeverAnswersIsGivenUp(t *testing.T) {
	needProcess(t)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := Spawn(ctx, SpawnConfig{Argv: []string{"/bin/sleep", "60"}, UID: 64741, GID: 64741, Sessions: 4, Memory: minMemory, Files: 1024})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("err = %v", err)
	}
}
