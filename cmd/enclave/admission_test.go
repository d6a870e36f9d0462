package main

import (
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/enclave-run/enclave/internal/auth"
	"github.com/enclave-run/enclave/internal/control"
	"github.com/enclave-run/enclave/internal/server"
	"github.com/google/go-cmp/cmp"
)

func TestQuotasMeanWhatTheySay(t *testing.T) {
	o := admissionOptions{MaxRunning: "7", MaxWaiting: "70", Drain: "2m", Overcommit: "1.5", Quotas: []string{
		"default:concurrent=4,perMinute=60,cpuSecondsPerDay=36000,waiting=100,storageMb=3", "acme:perMinute=unlimited", "b.c-d_e:waiting=1",
	}}
	got, err := o.parse()
	if err != nil {
		t.Fatal(err)
	}
	want := server.Admission{
		Running: 7, Waiting: 70, Overcommit: 1.5,
		Usual:   control.Quotas{Concurrent: 4, PerMinute: 60, CPUSecondsPerDay: 36000, Waiting: 100, Storage: 3 << 20},
		Special: map[string]control.Quotas{"acme": {PerMinute: control.Unlimited}, "b.c-d_e": {Waiting: 1}},
	}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(server.Admission{})); d != "" {
		t.Error(d)
	}
	if d, err := o.drain(); err != nil || d != 2*time.Minute {
		t.Errorf("a drain of 2m is %v, %v", d, err)
	}
	if got, err := new(admissionOptions).parse(); err != nil || got.Usual != (control.Quotas{}) {
		t.Errorf("nothing said is %+v, %v", got, err)
	}
	if d, err := new(admissionOptions).drain(); err != nil || d != 30*time.Second {
		t.Errorf("the usual drain is %v, %v", d, err)
	}
}

// A quota that is not understood is one that would not bind.
func TestQuotasThatWouldNotBindAreRefused(t *testing.T) {
	for _, text := range []string{
		"", ":", "acme", "acme:", ":concurrent=1", "acme:concurrent", "acme:concurrent=", "acme:concurrent=0", "acme:concurrent=-1",
		"acme:concurrent=1.5", "acme:concurrent=+ 1", "acme:concurrent=1000000001", "acme:concurrent=99999999999999999999",
		"acme:concurrent=unlimited", "acme:Concurrent=1", "acme:concurent=1", "acme:concurrent=1,concurrent=2", "acme:concurrent=1,",
		"acme: concurrent=1", "ac me:concurrent=1", "a:b:concurrent=1", "../x:concurrent=1", "*:concurrent=1", "-:concurrent=1",
		"acme:perMinute=unlimited,perMinute=1",
	} {
		o := admissionOptions{Quotas: []string{text}}
		if _, err := o.parse(); err == nil || !strings.Contains(err.Error(), "--quota") {
			t.Errorf("--quota %q: %v", text, err)
		}
	}
	for name, o := range map[string]admissionOptions{
		"an organisation twice": {Quotas: []string{"acme:waiting=1", "acme:perMinute=1"}},
		"no place":              {MaxRunning: "0"},
		"no memory":             {Overcommit: "0"},
		"memory without end":    {Overcommit: "inf"},
		"memory of no number":   {Overcommit: "nan"},
		"a word":                {MaxWaiting: "many"},
		"no unit":               {Drain: "30"},
		"before now":            {Drain: "-1s"},
		"days":                  {Drain: "25h"},
	} {
		if err := o.validate(); err == nil || !strings.Contains(err.Error(), "--") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What is accepted is what a reader who splits the text by hand finds in it.
func FuzzQuotas(f *testing.F) {
	for _, s := range []string{"default:concurrent=4,perMinute=60,cpuSecondsPerDay=36000,waiting=100,storageMb=3", "acme:perMinute=unlimited", "a:b:waiting=1", ":", "acme:waiting=1,waiting=2"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		o := admissionOptions{Quotas: []string{text}}
		a, err := o.parse()
		if err != nil {
			return
		}
		org, rest, _ := strings.Cut(text, ":")
		q, others := a.Special[org], len(a.Special)
		if org == server.UsualQuota {
			q, others = a.Usual, len(a.Special)+1
		}
		if !auth.ValidOrg(org) || others != 1 {
			t.Fatalf("%q bounds %q, and %d in all", text, org, others)
		}
		var said []string
		for name, n := range map[string]int64{"concurrent": int64(q.Concurrent), "perMinute": int64(q.PerMinute), "cpuSecondsPerDay": q.CPUSecondsPerDay, "waiting": int64(q.Waiting), "storageMb": q.Storage >> 20} {
			if n != 0 {
				said = append(said, name+"="+strconv.FormatInt(n, 10))
			}
		}
		var parts []string
		for part := range strings.SplitSeq(strings.ReplaceAll(rest, "=unlimited", "="+strconv.Itoa(control.Unlimited)), ",") {
			name, digits, _ := strings.Cut(part, "=")
			if trimmed := strings.TrimLeft(strings.TrimPrefix(digits, "+"), "0"); digits != strconv.Itoa(control.Unlimited) {
				digits = trimmed
			}
			parts = append(parts, name+"="+digits)
		}
		slices.Sort(said)
		slices.Sort(parts)
		if !slices.Equal(said, parts) {
			t.Errorf("%q is read as %q", text, said)
		}
	})
}

func TestAGatewayOfTooLittleMemoryIsRefusedWithWhatToDo(t *testing.T) {
	for memory, running := range map[string]string{"1024": "", "500": "128", "255": "1"} {
		_, err := (&admissionOptions{MaxRunning: running, Gateway: memory}).parse()
		if err == nil || !strings.Contains(err.Error(), "--gateway-memory") || !strings.Contains(err.Error(), "--max-running") {
			t.Errorf("%s MiB for %q sessions: %v", memory, running, err)
		}
	}
	for _, memory := range []string{"0", "-1", "many", "1e3", "1073741825"} {
		if _, err := (&admissionOptions{Gateway: memory}).parse(); err == nil {
			t.Errorf("%s is taken", memory)
		}
	}
	got, err := (&admissionOptions{Gateway: "4096", MaxRunning: "100"}).parse()
	if err != nil || got.GatewayMemory != 4<<30 {
		t.Errorf("%+v, %v", got, err)
	}
}
