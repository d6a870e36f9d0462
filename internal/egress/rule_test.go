package egress

import (
	"errors"
	"strings"
	"testing"
)

// badRules are what people write, and words that the answer must have for them.
var badRules = []struct{ rule, words string }{
	{"", "empty"},
	{" ", "blank"},
	{"\t\n", "blank"},
	{"api.example.com ", "whitespace"},
	{"api.example.com, b.example.com", "separator"},
	{"https://api.example.com/v1", "URL; a rule is only a host, like api.example.com"},
	{"http://api.example.com", "URL"},
	{"https://", "URL"},
	{"tcp://1.2.3.4:5", "URL; a rule is only a host, like 1.2.3.4"},
	{"api.example.com/v1", "path; a rule is only a host, like api.example.com"},
	{"api.example.com/", "path"},
	{"api.example.com/24", "path"},
	{"api.example.com:443/v1", "port"},
	{"api.example.com?x=1", "query"},
	{"user@api.example.com", "user information; a rule is only a host, like api.example.com"},
	{"bücher.example", "xn--bcher-kva.example"},
	{"*.bücher.example", "*.xn--bcher-kva.example"},
	{"Bücher.example", "xn--bcher-kva.example"},
	{"bücher..example", "not in ASCII"},
	{"例え.example", "xn--r8jz45g.example"},
	{"api.example.com.", "dot"},
	{"*.example.com.", "dot"},
	{"127.1", "address"},
	{"2130706433", "address"},
	{"0x7f000001", "address"},
	{"0177.0.0.1", "address"},
	{"*.1.2.3.4", "before an address"},
	{"1.2.3", "address"},
	{"api.example.com:0", "1 to 65535"},
	{"api.example.com:70000", "1 to 65535"},
	{"api.example.com:65536", "1 to 65535"},
	{"api.example.com:-1", "1 to 65535"},
	{"api.example.com:+443", "1 to 65535"},
	{"api.example.com:0443", "1 to 65535"},
	{"api.example.com:443-444", "1 to 65535"},
	{"api.example.com:*", "1 to 65535"},
	{"api.example.com:https", "1 to 65535"},
	{"api.example.com:", "without a port"},
	{"api.example.com:80:443", "neither a host"},
	{"93.184.216.34/24", "write 93.184.216.0/24 for the range or 93.184.216.34 for the address"},
	{"93.184.216.0/33", "0 to 32"},
	{"93.184.216.0/-1", "0 to 32"},
	{"93.184.216.0/024", "0 to 32"},
	{"93.184.216.0/", "0 to 32"},
	{"93.184.216.0/255.255.255.0", "0 to 32"},
	{"2606:4700::1/32", "2606:4700::/32"},
	{"2606:4700::/129", "0 to 128"},
	{"[2606:4700::/32]", "[2606:4700::/32]:443"},
	{"[2606:4700::1]:", "without a port"},
	{"[2606:4700::1", "brackets"},
	{"[2606:4700::1]443", "brackets"},
	{"[1.2.3.4]:443", "brackets"},
	{"[api.example.com]:443", "brackets"},
	{"[]:443", "brackets"},
	{"[:\x00]", `[:\x00]:443`},
	{"2606:4700::1%eth0", "zone"},
	{"::ffff:93.184.216.34", "write 93.184.216.34"},
	{"::ffff:93.184.216.0/120", "IPv4"},
	{"*", "names everything"},
	{"*:443", "names everything"},
	{"*.*", "*"},
	{"*.*.example.com", "*"},
	{"a.*.example.com", "*"},
	{"*a.example.com", "*"},
	{"a*.example.com", "*"},
	{"**.example.com", "*"},
	{"*.", "empty"},
	{"*.com", "public suffix"},
	{"*.COM", "public suffix"},
	{"*.co.uk", "public suffix"},
	{"*.internal", "public suffix"},
	{"*.ck", "public suffix"},
	{"*.x.ck", "public suffix"},
	{"*.xn--p1ai", "public suffix"},
	{"localhost", "localhost"},
	{"a.localhost:80", "localhost"},
	{"*.localhost", "localhost"},
	{"-a.example.com", "hyphen"},
	{"a..example.com", "empty label"},
	{".example.com", "empty label"},
	{"a\x00.example.com", "character"},
	{"a%2e.example.com", "character"},
	{"xn--google-.example", "hyphen"},
	{"xn--a.example", "internationalized"},
	{"127.0.0.1", "loopback"},
	{"127.0.0.1:8080", "loopback"},
	{"0.0.0.0", "this network"},
	{"0.0.0.0/8", "this network"},
	{"192.168.0.0/16", "private"},
	{"192.168.1.1", "private"},
	{"172.16.0.0/12", "private"},
	{"169.254.169.254", "metadata"},
	{"169.254.0.0/16", "metadata"},
	{"100.100.100.200", "metadata"},
	{"100.64.0.0/10", "carrier-grade"},
	{"168.63.129.16", "cloud"},
	{"224.0.0.0/4", "multicast"},
	{"240.0.0.0/4", "reserved"},
	{"255.255.255.255", "reserved"},
	{"203.0.113.7", "documentation"},
	{"::1", "loopback"},
	{"[::1]:443", "loopback"},
	{"::", "unspecified"},
	{"fe80::/10", "link-local"},
	{"fc00::/8", "unique local"},
	{"fd00:ec2::254", "metadata"},
	{"64:ff9b::808:808", "NAT64"},
	{"2002:808:808::1", "6to4"},
	{"2001::1", "Teredo"},
	{"4000::/2", "not global unicast"},
	{strings.Repeat("a.", 200) + "example.com", "longer"},
	{strings.Repeat("a.", 125) + "example", "253"},
}

var goodRules = []string{
	"api.example.com", "API.example.com:8443", "*.example.com", "*.github.io", "*.githubusercontent.com", "*.a.b.ck", "intranet", "com",
	"93.184.216.34", "93.184.216.34:22", "93.184.216.0/24", "93.184.216.0/24:9000", "0.0.0.0/0", "::/0", "0.0.0.0/0:443",
	"2606:4700::1111", "2606:4700::/32", "[2606:4700::/32]:443", "[2606:4700::1111]:853", "10.0.0.0/8", "10.1.2.3:5432", "fd12::/16", "8.0.0.0/5",
	"xn--bcher-kva.example", "my_bucket.s3.amazonaws.com", "93.184.216.34/32", "2606:4700::1/128", "r3---sn.example.com",
}

func TestBadRulesAreExplained(t *testing.T) {
	for _, c := range badRules {
		_, err := Parse("allowlist", []string{"api.example.com", c.rule}, standard(t, "10.0.0.0/8", "fd00::/8"))
		var re *RuleError
		if !errors.As(err, &re) {
			t.Errorf("%q: %v, want a RuleError", c.rule, err)
			continue
		}
		if re.Index != 1 || re.Rule != printable(c.rule) || !isPrintable(err.Error()) || !strings.Contains(re.Detail, c.words) {
			t.Errorf("%q: index %d, rule %q, detail %q; want words %q", c.rule, re.Index, re.Rule, re.Detail, c.words)
		}
	}
}

func TestGoodRulesAreAccepted(t *testing.T) {
	for _, r := range goodRules {
		p, err := Parse("allowlist", []string{r}, standard(t, "10.0.0.0/8", "fd00::/8"))
		if err != nil {
			t.Errorf("%q: %v", r, err)
		}
		if p.Digest() == (Policy{}).Digest() {
			t.Errorf("%q allows nothing", r)
		}
	}
}

// TestReservedRulesNeedATable shows that validation follows the table that the
// gateway dials by.
func TestReservedRulesNeedATable(t *testing.T) {
	rule := []string{"127.0.0.1:8080"}
	if _, err := Parse("allowlist", rule, Table{}); err == nil {
		t.Error("accepted in the zero Table")
	}
	open := standard(t).Opened(prefixes("127.0.0.1/32")...)
	p, err := Parse("allowlist", rule, open)
	if err != nil {
		t.Fatal(err)
	}
	if a, ok := p.Decide(Target{"127.0.0.1", 8080}).Pin(nil, open).Addr(); !ok || a.String() != "127.0.0.1:8080" {
		t.Errorf("pinned to %v, %v", a, ok)
	}
	if _, err := Parse("allowlist", []string{"93.184.216.34"}, standard(t).Denying(prefixes("93.184.216.34/32")...)); err == nil || !strings.Contains(err.Error(), "denied on this host") {
		t.Errorf("an address of this host: %v", err)
	}
}
