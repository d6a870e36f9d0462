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
	maxFlows     = 256
	maxHalf      = 64
	narrowBuffer = 16 << 10  // of what a flow receives, as the stack holds it
	wideBuffer   = 128 << 10 // of one that is wide
	synAckTries  = 4
	nic          = tcpip.NICID(1)

	maxLag  = 16                    // segments of a flow that the stack has not handled
	lagTime = 20 * time.Millisecond // that one more may wait
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
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocolProbe(s.handled)},
	})
	if err := s.tune(); err != nil {
		s.stack.Destroy()
		return err
	}
	s.taker = tcp.NewForwarder(s.stack, narrowBuffer, 2*maxHalf, func(r *tcp.ForwarderRequest) { s.run(ctx, r) })
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
	send := tcpip.TCPSendBufferSizeRangeOption{Min: 1, Default: narrowBuffer, Max: sendBuffer}
	receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4096, Default: narrowBuffer, Max: wideBuffer}
	// With this the scale of a connection's window leaves room for a wide buffer.
	// Nothing is tuned: accept sets the size before anything is read.
	moderate := tcpip.TCPModerateReceiveBufferOption(true)
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

// handled is called by the stack after each segment of a connection, which is
// locked.
func (s *serving) handled(st *tcp.TCPEndpointState) {
	id := stack.TransportEndpointID(st.ID)
	f, _, _ := s.look(tupleOf(id))
	if f == nil {
		return
	}
	f.done.Add(1)
	f.ahead.Store(int64(st.Receiver.PendingBufUsed))
	f.out.queued(st.SndBufState.SndBufUsed)
	select {
	case s.caught <- struct{}{}:
	default:
	}
}

// feed gives the stack a segment of f, unless it is one that the stack would
// hold beyond f's buffers. The stack takes any number of segments without
// payload: feed waits until it has handled most of those it has.
func (s *serving) feed(ctx context.Context, f *flow, p packet) error {
	f.mu.Lock()
	ep := f.ep
	f.mu.Unlock()
	switch {
	case ep == nil: // the handshake, which takes one segment
		if f.early++; f.early > maxLag {
			return nil
		}
	case p.length > int(ep.SocketOptions().GetReceiveBufferSize()):
		return nil
	default:
		refused := &ep.Stats().(*tcp.Stats).ReceiveErrors.SegmentQueueDropped
		for f.fed-f.done.Load()-int64(refused.Value()) >= maxLag && !closed(ep) {
			select {
			case <-s.caught:
			case <-time.After(lagTime):
				return nil // it is lost, as packets may be
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		f.fed++
	}
	s.deliver(p)
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
