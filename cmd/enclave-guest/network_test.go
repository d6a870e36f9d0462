//go:build linux

package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/wire"
)

// A datagram is what the tests want of an IP packet, taken apart by hand.
type datagram struct {
	src, dst     netip.Addr
	proto        byte
	sport, dport uint16
	payload      string
}

func parseDatagram(b []byte) (d datagram, ok bool) {
	var rest []byte
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		d.src, _ = netip.AddrFromSlice(b[12:16])
		d.dst, _ = netip.AddrFromSlice(b[16:20])
		d.proto, rest = b[9], b[4*int(b[0]&15):]
	case len(b) >= 40 && b[0]>>4 == 6:
		d.src, _ = netip.AddrFromSlice(b[8:24])
		d.dst, _ = netip.AddrFromSlice(b[24:40])
		d.proto, rest = b[6], b[40:]
	default:
		return datagram{}, false
	}
	if len(rest) < 8 || (d.proto != unix.IPPROTO_UDP && d.proto != unix.IPPROTO_TCP) {
		return d, false
	}
	d.sport, d.dport = binary.BigEndian.Uint16(rest), binary.BigEndian.Uint16(rest[2:])
	if d.proto == unix.IPPROTO_UDP {
		d.payload = string(rest[8:])
	}
	return d, true
}

// turnAround exchanges source and destination in place, which changes no
// checksum.
func turnAround(b []byte) {
	swap := func(i, j, n int) {
		for k := range n {
			b[i+k], b[j+k] = b[j+k], b[i+k]
		}
	}
	if b[0]>>4 == 4 {
		swap(12, 16, 4)
		swap(20, 22, 2)
	} else {
		swap(8, 24, 16)
		swap(40, 42, 2)
	}
}

// Everything that is not for the sandbox itself reaches the core as a packet,
// and what the core sends reaches the workload.
func TestPacketsCrossBothWays(t *testing.T) {
	onEach(t, func(t *testing.T, s *sandbox) {
		echoed := make(chan error, 1)
		go func() {
			r, w := wire.NewPacketReader(s.packets), wire.NewPacketWriter(s.packets)
			for {
				pkt, err := r.Next()
				if err != nil {
					echoed <- err
					return
				}
				if d, ok := parseDatagram(pkt); ok && d.proto == unix.IPPROTO_UDP {
					turnAround(pkt)
					if err := w.Write(pkt); err != nil {
						echoed <- err
						return
					}
				}
			}
		}()
		got := s.python(t, `
import socket
def echo(family, address, payload):
    s = socket.socket(family, socket.SOCK_DGRAM)
    s.settimeout(30)
    s.sendto(payload, address)
    back, sender = s.recvfrom(70000)
    print(address[0], len(back), back == payload, sender[0] == address[0], s.getsockname()[1] > 0)
echo(socket.AF_INET, ("192.0.2.1", 9), b"ping")
echo(socket.AF_INET, ("169.254.169.254", 80), b"x" * 60000)
echo(socket.AF_INET6, ("2001:db8::1", 9), b"y" * 60000)
a = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); a.connect(("192.0.2.1", 9)); print(a.getsockname()[0])
a = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); a.connect(("2001:db8::1", 9)); print(a.getsockname()[0])
l = socket.create_server(("127.0.0.1", 0)); socket.create_connection(l.getsockname()); print("loopback")
`)
		check(t, outcome{Stdout: "192.0.2.1 4 True True True\n169.254.169.254 60000 True True True\n2001:db8::1 60000 True True True\n" +
			wire.Address4 + "\n" + wire.Address6 + "\nloopback\n"}, got)
		if err := s.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		if err := <-echoed; err != io.EOF {
			t.Errorf("the stream ended with %v, not the mark", err)
		}
	})
}

// The last datagram of a process that exits at once is not lost, and the mark
// comes after it.
func TestShutdownDrainsThenMarks(t *testing.T) {
	onEach(t, func(t *testing.T, s *sandbox) {
		// More than the stream buffers, less than the interface queues, and far less
		// than the guest sends within drainLimit on a host that is busy.
		const n, size = 60, 20000
		type end struct {
			pkts [][]byte
			err  error
		}
		ended := make(chan end, 1)
		got := s.python(t, fmt.Sprintf(`
import os, socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for i in range(%d): s.sendto(b"datagram %%d".ljust(%d) %% i, ("192.0.2.1", 9))
os._exit(0)
`, n, size))
		check(t, outcome{}, got)
		sleeper, err := s.Start(t.Context(), wire.StartRequest{Argv: []string{"sleep", "1000"}})
		if err != nil {
			t.Fatal(err)
		}
		defer sleeper.Close()
		down := make(chan error, 1)
		go func() { down <- s.Shutdown(t.Context()) }()
		// Nobody reads until the shutdown has begun.
		for {
			p, err := s.Start(t.Context(), wire.StartRequest{Argv: []string{"true"}})
			if err == nil {
				p.Close()
				continue
			}
			var refused *wire.CallError
			if !errors.As(err, &refused) || refused.Code != wire.CodeClosing {
				t.Fatal(err)
			}
			break
		}
		go func() {
			pkts, err := readPackets(s.packets)
			ended <- end{pkts, err}
		}()
		if err := <-down; err != nil {
			t.Fatal(err)
		}
		e := <-ended
		if e.err != io.EOF {
			t.Errorf("the stream ended with %v, not the mark", e.err)
		}
		next := 0
		for _, pkt := range e.pkts {
			if d, ok := parseDatagram(pkt); ok && d.proto == unix.IPPROTO_UDP && d.dport == 9 {
				if want := fmt.Sprintf("datagram %d", next); strings.TrimSpace(d.payload) != want {
					t.Fatalf("%.20q, want %q", d.payload, want)
				}
				next++
			}
		}
		if next != n {
			t.Errorf("%d datagrams, want %d", next, n)
		}
		<-s.ended
		if s.code != 0 {
			t.Errorf("exit %d: %s", s.code, s.stderr)
		}
	})
}

// No packet that the core sends, however broken, ends the guest.
func TestBrokenPacketsAreDropped(t *testing.T) {
	s := newSandbox(t)
	w := wire.NewPacketWriter(s.packets)
	for _, pkt := range [][]byte{
		{0}, {0x45}, {0x60, 0}, {0xff, 1, 2, 3}, bytes.Repeat([]byte{0x45}, 20), bytes.Repeat([]byte{0x60}, wire.MTU), make([]byte, 40),
	} {
		if err := w.Write(pkt); err != nil {
			t.Fatal(err)
		}
	}
	check(t, outcome{Stdout: "alive\n"}, s.bash(t, "echo alive"))
}
