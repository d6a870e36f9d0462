//go:build linux

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/wire"
)

const (
	tunPath  = "/dev/net/tun"
	loopback = 1 // index of the loopback in every network namespace
)

// makeNetwork makes the sandbox's interface, gives it the addresses and all
// routes, and brings it up. It reports whether IPv6 leads there too: a kernel
// may lack it.
func makeNetwork() (tun *os.File, ipv6 bool, err error) {
	fd, err := openTUN()
	if err != nil {
		return nil, false, err
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	ifr, err := unix.NewIfreq(wire.Interface)
	if err != nil {
		return nil, false, fmt.Errorf("name the interface: %w", err)
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return nil, false, fmt.Errorf("make interface: %w", err)
	}

	nl, err := dialNetlink()
	if err != nil {
		return nil, false, err
	}
	defer unix.Close(nl.fd)
	index, err := interfaceIndex()
	if err != nil {
		return nil, false, err
	}
	if err := nl.setUp(loopback, 0); err != nil && !errors.Is(err, unix.ENODEV) {
		return nil, false, fmt.Errorf("bring the loopback up: %w", err)
	}
	if err := nl.setUp(index, wire.MTU); err != nil {
		return nil, false, fmt.Errorf("bring the interface up: %w", err)
	}
	if err := nl.lead(index, netip.MustParseAddr(wire.Address4)); err != nil {
		return nil, false, err
	}
	err6 := nl.lead(index, netip.MustParseAddr(wire.Address6))
	if err6 != nil && !lacksIPv6(err6) {
		return nil, false, err6
	}
	// A descriptor must be attached before the poller sees it: an unattached
	// one is ready with an error for ever (drivers/net/tun.c, tun_chr_poll).
	return os.NewFile(uintptr(fd), tunPath), err6 == nil, nil
}

// lacksIPv6 reports whether err is what a kernel built or booted without IPv6,
// or with disable_ipv6 set (EACCES), says.
func lacksIPv6(err error) bool {
	return errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EACCES)
}

func openTUN() (int, error) {
	const flags = unix.O_RDWR | unix.O_CLOEXEC | unix.O_NONBLOCK
	fd, err := unix.Open(tunPath, flags, 0)
	if errors.Is(err, unix.ENOENT) {
		// A bare /dev, as in a microVM. Where making it is not permitted the
		// second open says so.
		_ = os.MkdirAll("/dev/net", 0o755)
		_ = unix.Mknod(tunPath, unix.S_IFCHR|0o600, int(unix.Mkdev(10, 200)))
		fd, err = unix.Open(tunPath, flags, 0)
	}
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", tunPath, err)
	}
	return fd, nil
}

func interfaceIndex() (int32, error) {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("look the interface up: %w", err)
	}
	defer unix.Close(s)
	ifr, err := unix.NewIfreq(wire.Interface)
	if err != nil {
		return 0, fmt.Errorf("look the interface up: %w", err)
	}
	if err := unix.IoctlIfreq(s, unix.SIOCGIFINDEX, ifr); err != nil {
		return 0, fmt.Errorf("look the interface up: %w", err)
	}
	return int32(ifr.Uint32()), nil
}

// A netlink is a route netlink socket (rtnetlink(7)): the four requests that
// the guest makes do not need a library.
type netlink struct {
	fd  int
	seq uint32
}

func dialNetlink() (*netlink, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("bind netlink: %w", err)
	}
	return &netlink{fd: fd}, nil
}

// setUp brings an interface up, and sets its MTU unless that is 0.
func (n *netlink) setUp(index int32, mtu uint32) error {
	b := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	binary.NativeEndian.PutUint32(b[8:], unix.IFF_UP)
	binary.NativeEndian.PutUint32(b[12:], unix.IFF_UP)
	if mtu > 0 {
		b = appendAttr(b, unix.IFLA_MTU, binary.NativeEndian.AppendUint32(nil, mtu))
	}
	return n.request(unix.RTM_NEWLINK, 0, b)
}

// lead gives an interface the address a, for itself alone, and the default
// route of a's family.
func (n *netlink) lead(index int32, a netip.Addr) error {
	family, bits := byte(unix.AF_INET), byte(a.BitLen())
	if a.Is6() {
		family = unix.AF_INET6
	}
	create := uint16(unix.NLM_F_CREATE | unix.NLM_F_EXCL)

	// Nobody else can have the address: without this it is unusable for the
	// second that duplicate detection takes (RFC 4862, section 5.4).
	const flags = unix.IFA_F_NODAD
	b := []byte{family, bits, flags, unix.RT_SCOPE_UNIVERSE}
	b = binary.NativeEndian.AppendUint32(b, uint32(index))
	b = appendAttr(b, unix.IFA_LOCAL, a.AsSlice())
	b = appendAttr(b, unix.IFA_ADDRESS, a.AsSlice())
	if err := n.request(unix.RTM_NEWADDR, create, b); err != nil {
		return fmt.Errorf("give the interface %s: %w", a, err)
	}

	b = make([]byte, unix.SizeofRtMsg)
	b[0] = family
	b[4] = unix.RT_TABLE_MAIN
	b[5] = unix.RTPROT_BOOT
	b[6] = unix.RT_SCOPE_UNIVERSE
	b[7] = unix.RTN_UNICAST
	// gVisor wants the destination of a default route to be said.
	b = appendAttr(b, unix.RTA_DST, make([]byte, a.BitLen()/8))
	b = appendAttr(b, unix.RTA_OIF, binary.NativeEndian.AppendUint32(nil, uint32(index)))
	if err := n.request(unix.RTM_NEWROUTE, create, b); err != nil {
		return fmt.Errorf("route to the interface of %s: %w", a, err)
	}
	return nil
}

// appendAttr appends an attribute, aligned to four bytes, to b.
func appendAttr(b []byte, kind uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofRtAttr+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	for len(b)%unix.RTA_ALIGNTO != 0 {
		b = append(b, 0)
	}
	return b
}

// request sends one request and returns the error in its acknowledgement.
func (n *netlink) request(kind, flags uint16, body []byte) error {
	n.seq++
	b := binary.NativeEndian.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(body)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, flags|unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	b = binary.NativeEndian.AppendUint32(b, n.seq)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = append(b, body...)
	if err := unix.Sendto(n.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send to netlink: %w", err)
	}
	var reply [4096]byte
	m, _, err := unix.Recvfrom(n.fd, reply[:], 0)
	if err != nil {
		return fmt.Errorf("receive from netlink: %w", err)
	}
	if m < unix.SizeofNlMsghdr+4 || binary.NativeEndian.Uint16(reply[4:]) != unix.NLMSG_ERROR ||
		binary.NativeEndian.Uint32(reply[8:]) != n.seq {
		return errors.New("netlink gave no acknowledgement")
	}
	if code := int32(binary.NativeEndian.Uint32(reply[unix.SizeofNlMsghdr:])); code != 0 {
		return unix.Errno(-code)
	}
	return nil
}
