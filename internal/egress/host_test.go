package egress

import (
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCanonicalForms(t *testing.T) {
	long := strings.Repeat("a", 63)
	longest := strings.Join([]string{long, long, long, long[:61]}, ".")
	for in, want := range map[string]string{
		"api.example.com":              "api.example.com",
		"API.Example.COM":              "api.example.com",
		"api.example.com.":             "api.example.com",
		"API.example.com.":             "api.example.com",
		"intranet":                     "intranet",
		"my_bucket.s3.amazonaws.com":   "my_bucket.s3.amazonaws.com",
		"_http._tcp.example.com":       "_http._tcp.example.com",
		"r3---sn-abc.googlevideo.com":  "r3---sn-abc.googlevideo.com",
		"1password.com":                "1password.com",
		"4chan.org":                    "4chan.org",
		"127.0.0.1.example.com":        "127.0.0.1.example.com",
		"0x7f000001.example.com":       "0x7f000001.example.com",
		"bücher.example":               "xn--bcher-kva.example",
		"xn--bcher-kva.example":        "xn--bcher-kva.example",
		"XN--bcher-KVA.example":        "xn--bcher-kva.example",
		"faß.example":                  "xn--fa-hia.example",
		"例え.example":                   "xn--r8jz45g.example",
		"аllowed.example":              "xn--llowed-2nf.example", // begins in Cyrillic, and is recorded as what it is
		"localhost.example.com":        "localhost.example.com",
		"notlocalhost":                 "notlocalhost",
		longest:                        longest,
		longest + ".":                  longest,
		"1.2.3.4":                      "1.2.3.4",
		"169.254.169.254":              "169.254.169.254",
		"0.0.0.0":                      "0.0.0.0",
		"::1":                          "::1",
		"2001:DB8:0:0:0:0:0:1":         "2001:db8::1",
		"::ffff:10.0.0.1":              "10.0.0.1",
		"::FFFF:a00:1":                 "10.0.0.1",
		"0:0:0:0:0:ffff:a9fe:a9fe":     "169.254.169.254",
		"64:ff9b::169.254.169.254":     "64:ff9b::a9fe:a9fe",
		"2002:7f00:1::":                "2002:7f00:1::",
		"fe80:0000:0000:0000::0000:01": "fe80::1",
	} {
		got, err := Canonical(in)
		if err != nil || got != want {
			t.Errorf("Canonical(%q) = %q, %v, want %q", in, got, err, want)
		}
	}
}

// refusedHosts are what some parser, resolver or eye takes for another host than
// some other does.
var refusedHosts = []string{
	// Addresses to inet_aton, which system resolvers use.
	"0", "127.1", "127.0.1", "2130706433", "0x7f000001", "0X7F000001", "017700000001", "0177.0.0.1", "0x7f.0.0.1", "0x7f.1",
	"127.0.0.1.", "010.0.0.1", "10.0.0.01", "1.2.3", "1.2.3.4.5", "256.256.256.256", "1.2.3.256", "4294967295", "99999999999",
	"169.254.43518", "0xa9fea9fe", "2852039166", "0251.0376.0251.0376", "0xa9.0xfe.0xa9.0xfe", "127.0.0.0x1", "0x", "0x7g",
	"1", "example.1", "example.0x1", "a.b.0", "169.254.169.254.", "169.254.169.254..", "127.0.0.1 ", " 127.0.0.1", "١٢٧.0.0.1",
	// Digits, letters and stops that are not what they look like.
	"１２７.０.０.１", "127。0。0。1", "127.0.0。1", "allowed。example", "allowed．example", "allowed｡example", "ａllowed.example", "①.example",
	"ⓔxample.com", "example.ｃom", "example.com\u200b", "exam\u00adple.com", "exa\u200dmple.com", "\ufeffexample.com", "\u212a.example", "a\u212aü.example", "ℂ.example",
	"BÜCHER.example", "bu\u0308cher.example", "ﬁle.example", "⑴.example", "example．com", "½.example", "a\u0301.example",
	"℀.example", "example.com／path", "example.com：443", "example.com＃", "allowed.example＠evil.example", "\u202eexample.com", "a\u2024b.example",
	// What isn't a host only.
	"http://example.com", "https://example.com/", "//example.com", "example.com/", "example.com/path", "example.com?x", "example.com#x",
	"user@example.com", "user:pw@example.com", "example.com:443", "example.com:", ":443", "[::1]", "[::1]:443", "[1.2.3.4]", "::1]", "[example.com]",
	"1.2.3.4:80", "10.0.0.0/8", "*.example.com", "*", "example.com,evil.com", "example.com;evil.com", "example.com|id", "`id`.example.com", "$(id).example",
	"fe80::1%eth0", "::1%1", "::1%25lo", "127.0.0.1%00.example", "%31%32%37.0.0.1", "example%2ecom", "allowed.example%2eevil", "a=b.example", "a&b", "a'b", `a"b`, `a\b`, "a(b", "a<b>", "{a}", "~a", "a!b", "^a", "a+b",
	":::", "::g", "1::2::3", "12345::", "::1.2.3", "::1.2.3.256", "1:2:3:4:5:6:7", "1:2:3:4:5:6:7:8:9", "::01.2.3.4",
	// Bytes and shapes.
	"", ".", "..", ".example.com", "example..com", "example.com..", "a. b", "a b", "a\tb", "a\nb", "example.com\n", "\rexample.com", "a\x00b", "evil.example\x00.allowed.example", "127.0.0.1\x00.allowed.example",
	"a\x7fb", "a\x1b[0m", "a\xffb", "\xc0\xae", "caf\xe9.example", "a\u0085b", "a\u00a0b", "a\u3000b",
	"-a.example", "a-.example", "a.-.example", "-", "xn--", "xn--.example", "xn--a.example", "xn--google-.example", "xn--80ak6aa92e-.example", "xn--BÜCHER", "xn--\u00fc", "xn--55555577.example",
	strings.Repeat("a", 64) + ".example", strings.Repeat("a.", 127) + "aa", strings.Repeat("ü", 60) + ".example", strings.Repeat("a", 300),
	// What resolvers answer by themselves.
	"localhost", "LOCALHOST", "localhost.", "a.localhost", "a.b.LocalHost.", "x.localhost.",
}

func TestSurprisingHostsAreRefused(t *testing.T) {
	if len(refusedHosts) < 120 {
		t.Errorf("%d strings are fewer than 120", len(refusedHosts))
	}
	policy, err := Parse("allowlist", []string{"example.com", "*.example.com", "allowed.example", "0.0.0.0/0", "::/0"}, standard(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range refusedHosts {
		if got, err := Canonical(s); err == nil {
			t.Errorf("Canonical(%q) = %q, want an error", s, got)
		} else if !isPrintable(err.Error()) {
			t.Errorf("the error for %q is not printable: %q", s, err)
		}
		d := policy.Decide(Target{s, 443})
		if d.Reason != BadHost || !isPrintable(d.Target.Host) || len(d.Target.Host) > 253 {
			t.Errorf("%q was decided as %+v, want a printable %s", s, d, BadHost)
		}
		if d := policy.DecideName(s); d.Reason != BadHost || !isPrintable(d.Target.Host) {
			t.Errorf("the name %q was decided as %+v, want %s", s, d, BadHost)
		}
	}
}

// isPrintable reports whether s has no byte that a terminal or a log could take
// for more than text. Letters of other scripts are quoted by the caller's %q.
func isPrintable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return !strconv.IsPrint(r) })
}

func TestCanonicalOfTheUsualNameAllocatesNothing(t *testing.T) {
	if n := testing.AllocsPerRun(100, func() {
		if _, err := Canonical("api.example.com"); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

var nameForm = regexp.MustCompile(`^[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*$`)

// inetAton reports whether the C library's inet_aton takes s for an address.
func inetAton(s string) bool {
	parts := strings.Split(s, ".")
	if len(parts) > 4 {
		return false
	}
	for i, p := range parts {
		base := 10
		switch {
		case len(p) > 1 && (p[:2] == "0x" || p[:2] == "0X"):
			base, p = 16, p[2:]+"0" // glibc reads 0x as 0
		case len(p) > 1 && p[0] == '0':
			base = 8
		}
		n, err := strconv.ParseUint(p, base, 64)
		if err != nil || i < len(parts)-1 && n > 255 && base != 16 {
			return false
		}
	}
	return true
}

// FuzzCanonical requires of every canonical form that it is its own, that it is
// written in the letters of names, that nothing was repaired on the way, that no
// C library reads it as an address and that a URL with it has it for its host.
func FuzzCanonical(f *testing.F) {
	for _, s := range refusedHosts {
		f.Add(s)
	}
	for _, s := range []string{"API.Example.com.", "bücher.example", "::ffff:1.2.3.4", "xn--bcher-kva.example", "a_b.c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		c, err := Canonical(in)
		if err != nil {
			if c != "" {
				t.Fatalf("%q and an error", c)
			}
			return
		}
		if again, err := Canonical(c); err != nil || again != c {
			t.Fatalf("%q became %q and then %q, %v", in, c, again, err)
		}
		if a, err := netip.ParseAddr(c); err == nil {
			if was, err := netip.ParseAddr(in); err != nil || was.Unmap() != a || a.Zone() != "" || a.Is4In6() {
				t.Fatalf("%q became the address %s", in, c)
			}
			return
		}
		if !nameForm.MatchString(c) || len(c) > 253 {
			t.Fatalf("%q became %q, which is not a name", in, c)
		}
		if inetAton(c) {
			t.Fatalf("%q became %q, which is an address to C", in, c)
		}
		if isASCII(in) {
			if want := strings.ToLower(strings.TrimSuffix(in, ".")); c != want {
				t.Fatalf("%q became %q", in, c)
			}
		}
		u, err := url.Parse("https://" + c + "/")
		if err != nil || u.Hostname() != c || u.Port() != "" || u.User != nil {
			t.Fatalf("%q in a URL is %v, %v", c, u, err)
		}
	})
}

func TestPrintableIsSafeAndShort(t *testing.T) {
	got := printable("a\x00\x1b[31mü\n" + strings.Repeat("\xff", 300))
	if !isPrintable(got) || !isASCII(got) || len(got) > 253 {
		t.Errorf("printable gave %q", got)
	}
	if diff := cmp.Diff(`a\x00\x1b[31m\u00fc\n`, got[:len(`a\x00\x1b[31m\u00fc\n`)]); diff != "" {
		t.Error(diff)
	}
}
