package gateway

import (
	"bytes"
	"context"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/egress"
)

func TestBytesAreCountedThoughTheProcessDies(t *testing.T) {
	needProcess(t)
	sink := echo(t)
	port := netip.MustParseAddrPort(sink).Port()
	dir := t.TempDir()
	p, err := Spawn(t.Context(), SpawnConfig{
		Argv: []string{"/proc/self/exe", "gateway-process", "loopback", nameServer(t, map[string]string{"api.example.com.": "127.0.0.1"})},
		UID:  64741, GID: 64741, Sessions: 4, Memory: minMemory, Files: 1024, Meters: dir, Stderr: os.Stderr,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	rule := netip.AddrPortFrom(public, port).String()
	rule = "api.example.com" + rule[len(public.String()):]
	c := serveOn(t, p, nil, grant(rule), newRecord())
	conn, err := c.dial(netip.AddrPortFrom(c.address("api.example.com"), port).String())
	if err != nil {
		t.Fatal(err)
	}
	sent := bytes.Repeat([]byte("0123456789"), 1000)
	conn.Write(sent)
	if _, err := io.ReadFull(conn, make([]byte, len(sent))); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, testSession))
	if err != nil || info.Mode() != 0o600 || info.Size() != meterSize {
		t.Errorf("the file is %v, %v", info, err)
	}
	unix.Kill(p.Pid(), unix.SIGKILL)
	<-c.done
	if c.err == nil {
		t.Error("Serve succeeded")
	}
	const questions = 1024 // more than one look-up and its answers cost
	for name, n := range map[string]int64{"in": c.result.In, "out": c.result.Out} {
		if least := int64(len(sent)); n < least || n > least+questions {
			t.Errorf("%d bytes %s, want %d and a look-up", n, name, least)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("%v are left, %v", left, err)
	}
}

// The process that counts may be taken over: what it says is never less than it
// said, and never nonsense.
func TestAMeterIsBelievedWithinReason(t *testing.T) {
	const budget = 1000
	for name, c := range map[string]struct {
		in, out    int64
		told, want egress.Traffic
	}{
		"it died":          {in: 3, out: 4, want: egress.Traffic{In: 3, Out: 4}},
		"it told more":     {in: 3, out: 4, told: egress.Traffic{In: 5, Out: 1}, want: egress.Traffic{In: 5, Out: 4}},
		"over the budget":  {in: 999, out: 2, want: egress.Traffic{In: 999, Out: 2, Spent: true}},
		"it was spent":     {in: 1, told: egress.Traffic{In: 1, Spent: true}, want: egress.Traffic{In: 1, Spent: true}},
		"negative":         {in: -5, out: 4, told: egress.Traffic{In: 1}, want: egress.Traffic{In: 1, Out: 4}},
		"more than can be": {in: 1 << 62, out: 1 << 62, told: egress.Traffic{In: 1}, want: egress.Traffic{In: 1}},
	} {
		f, err := createMeter(t.TempDir(), testSession)
		if err != nil {
			t.Fatal(err)
		}
		m, err := mapMeter(int(f.f.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		m.in.Add(c.in)
		m.out.Add(c.out)
		m.close()
		if got := f.traffic(budget, c.told); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
		f.remove()
	}
}

func TestWhatIsNotAMeterIsNotMapped(t *testing.T) {
	for name, content := range map[string]string{
		"empty": "", "short": meterMagic, "another layout": "enclmtr2" + string(make([]byte, 16)), "long": meterMagic + string(make([]byte, 17)),
	} {
		path := filepath.Join(t.TempDir(), "f")
		os.WriteFile(path, []byte(content), 0o600)
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if m, err := mapMeter(int(f.Fd())); err == nil {
			m.close()
			t.Errorf("%s: mapped", name)
		}
		told := egress.Traffic{In: 7}
		if got := (meterFile{f}).traffic(1000, told); name != "long" && got != told {
			t.Errorf("%s: %+v", name, got)
		}
		f.Close()
	}
	for _, session := range []string{"", ".", "..", "../x", "a/b"} {
		if f, err := createMeter(t.TempDir(), session); err == nil {
			f.remove()
			t.Errorf("session %q has a meter", session)
		}
	}
	dir := t.TempDir()
	f, err := createMeter(dir, testSession)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := createMeter(dir, testSession); err == nil {
		t.Error("a session has two meters")
	}
	f.f.Close()
	if err := ClearMeters(dir); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("%v are left", left)
	}
}

// A process serves no more sessions at a time than its memory was divided among.
func TestAProcessServesNoMoreSessionsThanItHasMemoryFor(t *testing.T) {
	p := spawn(t, "system") // four
	var all []*call
	for range 4 {
		c := serveOn(t, p, nil, grant(), newRecord())
		c.lookup("evil.example.com", 1)
		all = append(all, c)
	}
	core, guest := socketPair(t)
	defer guest.Close()
	ctx, cancel := context.WithCancel(t.Context())
	rec := newRecord()
	done := make(chan struct{})
	go func() { defer close(done); p.Serve(ctx, core, testSession, grant(), rec) }()
	b := udpTo("8.8.8.8", 53, "x")
	guest.Write(append([]byte{0, byte(len(b))}, b...))
	all[0].lookup("evil2.example.com", 1) // meanwhile the process goes on
	if rec.count() != 0 {
		t.Error("a fifth is served")
	}
	all[0].end()
	<-rec.grew // now it is
	cancel()
	<-done
}
