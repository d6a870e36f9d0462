package gateway

import (
	"context"
	"fmt"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// The bounds of one session's stack. Its worst case is all flows with both
// buffers full; the defaults of netstack would be 1 to 4 MiB each.
const (
	maxFlows    = 256
	maxHalf     = 64
	flowBuffer  = 128 << 10
	wideFlows   = 16      // so many flows at a time
	wideBuffer  = 1 << 20 // may have so much on its way to the sandbox
	synAckTries = 4
	nic         = tcpip.NICID(1)
)

// open makes the session's stack. It has TCP only: everything else is answered
// by judge. It has no address and answers for all.
func (s *serving) open(ctx context.Context) error {
	s.stack = stack.New(stack.Options{
		NetworkProtocols: []stack.NetworkProtocolFactory{
			ipv4.NewProtocol,
			// Without options: no router solicitation, no membership report, no
			// address of its own, so that the stack sends nothing unasked.
			ipv6.NewProtocolWithOptions(ipv6.Options{}),
		},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol},
	})
	if err := s.tune(); err != nil {
		s.stack.Destroy()
		return err
	}
	s.taker = tcp.NewForwarder(s.stack, flowBuffer, 2*maxHalf, func(r *tcp.ForwarderRequest) { s.run(ctx, r) })
	s.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, s.take)
	if err := s.stack.CreateNIC(nic, s.link); err != nil {
		s.stack.Destroy()
		return fmt.Errorf("attach the link: %s", err)
	}
	s.stack.SetPromiscuousMode(nic, true) // it ends every destination
	s.stack.SetSpoofing(nic, true)        // and answers from there
	s.stack.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv4EmptySubnet, NIC: nic},
		{Destination: header.IPv6EmptySubnet, NIC: nic},
	})
	return nil
}

func (s *serving) tune() error {
	sack := tcpip.TCPSACKEnabled(true)
	send := tcpip.TCPSendBufferSizeRangeOption{Min: 4096, Default: flowBuffer, Max: wideBuffer}
	receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4096, Default: flowBuffer, Max: flowBuffer}
	moderate := tcpip.TCPModerateReceiveBufferOption(false)
	// The stream keeps packets in order and loses none, so that no duplicate can
	// come back after a connection has ended (what RFC 9293 keeps TIME-WAIT for).
	timeWait := tcpip.TCPTimeWaitTimeoutOption(time.Millisecond)
	linger := tcpip.TCPLingerTimeoutOption(lingerTime)
	tries := tcpip.TCPSynRetriesOption(synAckTries)
	for _, o := range []tcpip.SettableTransportProtocolOption{&sack, &send, &receive, &moderate, &timeWait, &linger, &tries} {
		if err := s.stack.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return fmt.Errorf("set %T: %s", o, err)
		}
	}
	return nil
}

// take is called by the stack for each segment that has no endpoint, in the
// goroutine that delivered it. It takes a SYN that was admitted, and the repeats
// of one that is being decided; to all others the stack answers with a reset.
func (s *serving) take(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	if s.opening {
		s.taken = s.taker.HandlePacket(id, pkt)
		return s.taken
	}
	f, _, _ := s.look(tupleOf(id))
	return f != nil && f.undecided()
}
