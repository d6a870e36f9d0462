package route

import (
	"net"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/testenv"
)

// inNamespace calls f in a new network namespace with a wire "eth0" that leads the
// default routes away.
func inNamespace(t *testing.T, f func(eth0 netlink.Link)) {
	t.Helper()
	testenv.Need(t, "root")
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		must := func(err error) {
			if err != nil {
				t.Error(err)
				runtime.Goexit()
			}
		}
		must(unix.Unshare(unix.CLONE_NEWNET))
		must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "wire"}))
		var eth0 netlink.Link
		for _, name := range []string{"lo", "wire", "eth0"} {
			l, err := netlink.LinkByName(name)
			must(err)
			must(netlink.LinkSetUp(l))
			eth0 = l
		}
		for _, all := range []string{"0.0.0.0/0", "::/0"} {
			must(netlink.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: prefix(all), Scope: netlink.SCOPE_LINK}))
		}
		f(eth0)
	}()
	<-done
}

func prefix(s string) *net.IPNet {
	ip, n, err := net.ParseCIDR(s)
	if err != nil {
		panic(err)
	}
	return &net.IPNet{IP: ip, Mask: n.Mask}
}

func TestOwnIsAsOfTheQuestion(t *testing.T) {
	inNamespace(t, func(eth0 netlink.Link) {
		k, err := Open()
		if err != nil {
			t.Error(err)
			return
		}
		defer k.Close()
		// The kernel makes an IPv6 address its own in a work of its own, a moment after it
		// was asked to (addrconf_dad_work in net/ipv6/addrconf.c), and tells of the route.
		told, end := make(chan netlink.RouteUpdate, 100), make(chan struct{})
		defer close(end)
		if err := netlink.RouteSubscribe(told, end); err != nil {
			t.Error(err)
			return
		}
		own := func(when string, want bool, addrs ...string) {
			for _, a := range addrs {
				got := k.Own(netip.MustParseAddr(a))
				for late := time.After(10 * time.Second); got != want && want; got = k.Own(netip.MustParseAddr(a)) {
					select {
					case <-told:
						continue
					case <-late:
					}
					break
				}
				if got != want {
					t.Errorf("%s: %s is the host's own: %t", when, a, got)
				}
			}
		}
		do := func(err error) {
			if err != nil {
				t.Error(err)
			}
		}
		own("at first", true, "127.0.0.1", "127.9.9.9", "::1", "255.255.255.255", "224.0.0.1", "ff02::1", "::ffff:127.0.0.1", "0.0.0.0")
		own("at first", false, "93.184.216.34", "93.184.216.255", "93.184.217.9", "2606:4700::1", "2606:4700:1::9")

		a4, a6 := &netlink.Addr{IPNet: prefix("93.184.216.34/24")}, &netlink.Addr{IPNet: prefix("2606:4700::1/64"), Flags: unix.IFA_F_NODAD}
		a4.Broadcast = net.IPv4(93, 184, 216, 255)
		do(netlink.AddrAdd(eth0, a4))
		do(netlink.AddrAdd(eth0, a6))
		do(netlink.AddrAdd(eth0, &netlink.Addr{IPNet: prefix("93.184.216.35/24")})) // a secondary one
		own("with addresses", true, "93.184.216.34", "93.184.216.35", "93.184.216.255", "2606:4700::1", "::ffff:93.184.216.34")
		own("with addresses", false, "93.184.216.36", "2606:4700::2")

		// What a local route covers is the host's too, with whatever source.
		lo, err := netlink.LinkByName("lo")
		do(err)
		for _, r := range []*netlink.Route{
			{LinkIndex: lo.Attrs().Index, Dst: prefix("93.184.217.0/24"), Src: net.IPv4(93, 184, 216, 34), Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST, Table: unix.RT_TABLE_LOCAL},
			{LinkIndex: lo.Attrs().Index, Dst: prefix("2606:4700:1::/64"), Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST, Table: unix.RT_TABLE_LOCAL},
			{LinkIndex: lo.Attrs().Index, Dst: prefix("93.184.218.0/24"), Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST, Table: 77},
		} {
			do(netlink.RouteAdd(r))
		}
		own("with a table that no rule leads to", false, "93.184.218.9")
		rule := netlink.NewRule()
		rule.Table, rule.Priority, rule.Family = 77, 100, unix.AF_INET
		do(netlink.RuleAdd(rule))
		own("with local routes", true, "93.184.217.9", "2606:4700:1::9", "93.184.218.9")

		do(netlink.AddrDel(eth0, a6))
		do(netlink.AddrDel(eth0, a4))
		own("without the address", false, "93.184.216.34", "2606:4700::1")

		do(netlink.LinkSetDown(eth0))
		own("without a way", false, "93.184.216.34", "2606:4700::1")
	})
}

func TestWhatCannotBeToldIsOwn(t *testing.T) {
	k, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []netip.Addr{{}, netip.MustParseAddr("fe80::1%eth0")} {
		if !k.Own(a) {
			t.Errorf("%s is not the host's own", a)
		}
	}
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	if !k.Own(netip.MustParseAddr("93.184.216.34")) {
		t.Error("a closed kernel lets out")
	}
}

func BenchmarkOwn(b *testing.B) {
	k, err := Open()
	if err != nil {
		b.Fatal(err)
	}
	defer k.Close()
	for b.Loop() {
		k.Own(netip.MustParseAddr("93.184.216.34"))
	}
}
