package egress

import "net/netip"

// A specialRange is a range that no session reaches, and what it is.
type specialRange struct {
	prefix netip.Prefix
	what   string
}

// privateSpace is where an operator may list ranges.
var privateSpace = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("fc00::/7"),
}

// metadata are the addresses at which clouds hand out credentials and
// configuration. They are refused even inside an operator's private ranges.
// Those in link-local space are listed so that this list can be read alone.
var metadata = []specialRange{
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local, where clouds serve metadata"}, // AWS, Google, Azure, ECS 170.2, Tencent 0.23, ...
	{netip.MustParsePrefix("100.100.0.0/16"), "cloud metadata and services"},             // Alibaba: 100.100.100.200, DNS at 100.100.2.136
	{netip.MustParsePrefix("168.63.129.16/32"), "cloud platform service"},                // Azure's wire server, otherwise an ordinary address
	{netip.MustParsePrefix("192.0.0.192/32"), "cloud metadata"},                          // Oracle
	{netip.MustParsePrefix("fd00:ec2::/32"), "cloud metadata"},                           // AWS: ::254, and its DNS, time and pod identity
	{netip.MustParsePrefix("fd20:ce::/32"), "cloud metadata"},                            // Google: ::254
	{netip.MustParsePrefix("fd00:c1::/32"), "cloud metadata"},                            // Oracle: ::a9fe:a9fe
	{netip.MustParsePrefix("fd00:42::/32"), "cloud metadata"},                            // Scaleway: ::42
	{netip.MustParsePrefix("fe80::/10"), "link-local, where clouds serve metadata"},      // OpenStack: fe80::a9fe:a9fe
}

// special are the ranges of IANA's IPv4 and IPv6 special-purpose address
// registries (RFC 6890), those that it calls globally reachable included,
// since none of them is where a service lives. To these are added multicast,
// which the registries leave to others, and what was returned or deprecated.
// More specific entries of the registries inside a listed one are left out.
var special = []specialRange{
	{netip.MustParsePrefix("0.0.0.0/8"), "this network (RFC 791)"},
	{netip.MustParsePrefix("10.0.0.0/8"), "private (RFC 1918)"},
	{netip.MustParsePrefix("100.64.0.0/10"), "carrier-grade NAT (RFC 6598)"},
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback"},
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local (RFC 3927)"},
	{netip.MustParsePrefix("172.16.0.0/12"), "private (RFC 1918)"},
	{netip.MustParsePrefix("192.0.0.0/24"), "protocol assignments (RFC 6890)"},
	{netip.MustParsePrefix("192.0.2.0/24"), "documentation (RFC 5737)"},
	{netip.MustParsePrefix("192.31.196.0/24"), "AS112 (RFC 7535)"},
	{netip.MustParsePrefix("192.52.193.0/24"), "AMT (RFC 7450)"},
	{netip.MustParsePrefix("192.88.99.0/24"), "6to4 relays (RFC 7526)"},
	{netip.MustParsePrefix("192.168.0.0/16"), "private (RFC 1918)"},
	{netip.MustParsePrefix("192.175.48.0/24"), "AS112 (RFC 7534)"},
	{netip.MustParsePrefix("198.18.0.0/15"), "benchmarking (RFC 2544)"},
	{netip.MustParsePrefix("198.51.100.0/24"), "documentation (RFC 5737)"},
	{netip.MustParsePrefix("203.0.113.0/24"), "documentation (RFC 5737)"},
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast (RFC 5771)"},
	{netip.MustParsePrefix("240.0.0.0/4"), "reserved (RFC 1112)"}, // with 255.255.255.255

	// What is not in 2000::/3 is not global unicast (RFC 4291, section 2.4). Of it
	// the ranges with a name come first, for the sake of messages.
	{netip.MustParsePrefix("::/128"), "unspecified (RFC 4291)"},
	{netip.MustParsePrefix("::1/128"), "loopback (RFC 4291)"},
	{netip.MustParsePrefix("::ffff:0:0/96"), "IPv4-mapped (RFC 4291)"},
	{netip.MustParsePrefix("::/96"), "IPv4-compatible (RFC 4291)"},
	{netip.MustParsePrefix("64:ff9b::/96"), "NAT64 (RFC 6052)"},
	{netip.MustParsePrefix("64:ff9b:1::/48"), "NAT64 (RFC 8215)"},
	{netip.MustParsePrefix("100::/64"), "discard (RFC 6666)"},
	{netip.MustParsePrefix("100:0:0:1::/64"), "dummy (RFC 9780)"},
	{netip.MustParsePrefix("5f00::/16"), "segment routing (RFC 9602)"},
	{netip.MustParsePrefix("fc00::/7"), "unique local (RFC 4193)"},
	{netip.MustParsePrefix("fe80::/10"), "link-local (RFC 4291)"},
	{netip.MustParsePrefix("fec0::/10"), "site-local (RFC 3879)"},
	{netip.MustParsePrefix("ff00::/8"), "multicast (RFC 4291)"},
	{netip.MustParsePrefix("::/3"), "not global unicast (RFC 4291)"},
	{netip.MustParsePrefix("4000::/2"), "not global unicast (RFC 4291)"},
	{netip.MustParsePrefix("8000::/1"), "not global unicast (RFC 4291)"},

	{netip.MustParsePrefix("2001::/32"), "Teredo (RFC 4380)"},
	{netip.MustParsePrefix("2001::/23"), "protocol assignments (RFC 2928)"}, // ORCHID, benchmarking, AMT, AS112, drones
	{netip.MustParsePrefix("2001:db8::/32"), "documentation (RFC 3849)"},
	{netip.MustParsePrefix("2002::/16"), "6to4 (RFC 3056)"},
	{netip.MustParsePrefix("2620:4f:8000::/48"), "AS112 (RFC 7534)"},
	{netip.MustParsePrefix("3ffe::/16"), "6bone, returned (RFC 3701)"},
	{netip.MustParsePrefix("3fff::/20"), "documentation (RFC 9637)"},
}
