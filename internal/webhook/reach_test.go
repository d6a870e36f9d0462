package webhook

import (
	"net/netip"
	"strings"
	"testing"
)

func prefixes(ps ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range ps {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func nobodys(netip.Addr) bool { return false }

func reach(t *testing.T, allow ...string) Reach {
	t.Helper()
	r, err := NewReach(prefixes(allow...), func(a netip.Addr) bool {
		return a == netip.MustParseAddr("203.0.114.9") || a == netip.MustParseAddr("10.1.2.3")
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestURLsOfStrangersAreRefused(t *testing.T) {
	closed, open := reach(t), reach(t, "10.0.0.0/8", "127.0.0.1/32", "fd00::/8")
	for _, c := range []struct{ raw, closed, open string }{
		{"https://hooks.example.com/T0/B1?x=1", "https://hooks.example.com/T0/B1?x=1", "https://hooks.example.com/T0/B1?x=1"},
		{"https://HOOKS.Example.COM", "https://hooks.example.com", "https://hooks.example.com"},
		{"https://hooks.example.com:8443/", "https://hooks.example.com:8443/", "https://hooks.example.com:8443/"},
		{"https://93.184.216.34/", "https://93.184.216.34/", "https://93.184.216.34/"},
		{"https://[2606:4700::1111]/", "https://[2606:4700::1111]/", "https://[2606:4700::1111]/"},
		{"http://10.1.2.3/", "", "http://10.1.2.3/"}, // this host's own, but the operator listed it
		{"http://127.0.0.1:9000/x", "", "http://127.0.0.1:9000/x"},
		{"http://inside.example/", "", "http://inside.example/"}, // judged when it is dialled
		{"https://10.9.9.9/", "", "https://10.9.9.9/"},
		{"https://203.0.114.9/", "", ""}, // this host's own
		{"http://93.184.216.34/", "", ""},
		{"https://127.0.0.2/", "", ""},
		{"https://192.168.1.1/", "", ""},
		{"https://169.254.169.254/latest/meta-data/", "", ""},
		{"https://[fd00:ec2::254]/", "", ""},
		{"https://[::ffff:169.254.169.254]/", "", ""},
		{"https://100.100.100.200/", "", ""},
		{"https://0x7f000001/", "", ""},
		{"https://2130706433/", "", ""},
		{"https://127.1/", "", ""},
		{"https://localhost/", "", ""},
		{"https://user:pass@hooks.example.com/", "", ""},
		{"https://hooks.example.com/#frag", "", ""},
		{"https://hooks.example.com:22/", "", ""},
		{"https://hooks.example.com:0443/", "", ""},
		{"https://hooks.example.com:/", "", ""},
		{"https://hooks.example.com:65536/", "", ""},
		{"https://hooks.example.com\\@evil.example/", "", ""},
		{"https://hooks.example.com/\r\nX: y", "", ""},
		{"https://hooks.example.com/\x00", "", ""},
		{"https://hooks.exаmple.com/", "", ""}, // a Cyrillic letter
		{"//hooks.example.com/", "", ""},
		{"/relative", "", ""},
		{"https:hooks.example.com", "", ""},
		{"ftp://hooks.example.com/", "", ""},
		{"file:///etc/passwd", "", ""},
		{"https://" + strings.Repeat("a", 2048), "", ""},
	} {
		for name, in := range map[string]struct {
			r    Reach
			want string
		}{"closed": {closed, c.closed}, "open": {open, c.open}} {
			got, err := in.r.Check(c.raw)
			if got != in.want || (err == nil) != (in.want != "") {
				t.Errorf("%s: %q: %q, %v; want %q", name, c.raw, got, err, in.want)
			}
			if again, err := in.r.Check(got); got != "" && (again != got || err != nil) {
				t.Errorf("%s: the canonical form of %q is not its own: %q, %v", name, got, again, err)
			}
			if err != nil && strings.Contains(err.Error(), "example") && !strings.Contains(err.Error(), "such as https://hooks.example.com/enclave") {
				t.Errorf("the refusal repeats the URL: %v", err)
			}
		}
	}
	if _, err := (Reach{}).Check("https://93.184.216.34/"); err == nil {
		t.Error("the zero Reach reaches an address")
	}
}

func FuzzCheckedURLsAreTheirOwnCanonicalForm(f *testing.F) {
	for _, s := range []string{"https://hooks.example.com/T0", "http://127.0.0.1:9000/", "https://[::1]:443/", "https://a%2eb/", "https://a/%00?#"} {
		f.Add(s)
	}
	r, err := NewReach(prefixes("127.0.0.0/8"), nobodys)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		got, err := r.Check(raw)
		if err != nil {
			return
		}
		// What was accepted has one reading, by bytes and not by net/url: a scheme,
		// a host of harmless characters, and the rest.
		if again, err := r.Check(got); err != nil || again != got {
			t.Errorf("%q became %q, and then %q, %v", raw, got, again, err)
		}
		rest, ok := strings.CutPrefix(got, "https://")
		if !ok {
			rest, ok = strings.CutPrefix(got, "http://")
		}
		host := rest[:len(rest)-len(strings.TrimLeft(rest, "abcdefghijklmnopqrstuvwxyz0123456789.-_:[]"))]
		if after := rest[len(host):]; !ok || host == "" || after != "" && after[0] != '/' && after[0] != '?' {
			t.Errorf("%q became %q", raw, got)
		}
	})
}

func TestAnOperatorCannotOpenMoreThanPrivateRanges(t *testing.T) {
	for _, bad := range []string{"0.0.0.0/0", "169.254.0.0/16", "8.8.8.0/24", "100.64.0.0/10", "::/0", "fe80::/10"} {
		if _, err := NewReach(prefixes(bad), nobodys); err == nil {
			t.Errorf("%s was opened", bad)
		}
	}
	if _, err := NewReach([]netip.Prefix{netip.MustParsePrefix("10.0.0.1/8")}, nobodys); err == nil {
		t.Error("a range with host bits was opened")
	}
}

// The host's own addresses are those that it has when it is asked.
func TestReachFollowsTheHostsAddresses(t *testing.T) {
	if _, err := NewReach(nil, nil); err == nil {
		t.Error("a reach of a host that says nothing")
	}
	mine := false
	r, err := NewReach(nil, func(netip.Addr) bool { return mine })
	if err != nil {
		t.Fatal(err)
	}
	for _, mine = range []bool{false, true, false} {
		if _, err := r.Check("https://203.0.114.9/"); (err == nil) == mine {
			t.Errorf("the host's own: %t, error %v", mine, err)
		}
	}
}
