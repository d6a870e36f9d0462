package gateway

import (
	"encoding/binary"
	"net/netip"
	"sync"
)

const maxNames = 1024

// synthetic holds the addresses that stand for names in a session's network.
// RFC 2544 set them aside for benchmarks: nothing on the internet has one.
var synthetic = netip.MustParsePrefix("198.18.0.0/15")

const (
	firstSynthetic = 198<<24 | 18<<16 | 1<<8 // the first 256 are the gateway's, the sandbox's and nobody's
	synthetics     = 1<<17 - 2*256
)

// names gives each allowed name of a session an address of its own, which no
// other name of the session ever has.
type names struct {
	start uint32

	mu      sync.Mutex
	byName  map[string]netip.Addr
	byAddr  map[netip.Addr]string
	granted uint32
}

// newNames returns an empty table that begins at start, any number. It is
// random, so that an address that a program kept from before a restart of the
// gateway most likely stands for nothing, rather than for another name.
func newNames(start uint32) *names {
	return &names{start: start % synthetics, byName: map[string]netip.Addr{}, byAddr: map[netip.Addr]string{}}
}

// address returns the address of name. It reports false if the session has too
// many names.
func (n *names) address(name string) (netip.Addr, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if a, ok := n.byName[name]; ok {
		return a, true
	}
	if n.granted == maxNames {
		return netip.Addr{}, false
	}
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], firstSynthetic+(n.start+n.granted)%synthetics)
	a := netip.AddrFrom4(b)
	n.granted++
	n.byName[name], n.byAddr[a] = a, name
	return a, true
}

// host returns what the record calls a: the name that it stands for, else the
// text of the address.
func (n *names) host(a netip.Addr) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	a = a.Unmap()
	if name, ok := n.byAddr[a]; ok {
		return name
	}
	return a.String()
}
