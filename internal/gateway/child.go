package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/egress"
	"github.com/enclave-run/enclave/internal/route"
)

// controlFD is the descriptor on which a gateway process is told its sessions.
const controlFD = 3

// ready is what the gateway process says once it is confined; anything else it
// says is why it cannot be.
const ready = "ready"

// RunChild is the main function of the gateway process, which Spawn starts. It
// confines the process, then serves the sessions that it is handed until the
// control plane closes the socket or ctx ends. It resolves with the system's
// configuration and dials what it is told, and nothing can make it do otherwise.
func RunChild(ctx context.Context) error {
	return runChild(ctx, System)
}

func runChild(ctx context.Context, config func(egress.Table) (Config, error)) error {
	control, err := connOf(controlFD)
	if err != nil {
		return fmt.Errorf("gateway process: %w", err)
	}
	defer control.Close()
	gw, err := prepare(control, config)
	if err != nil {
		control.Write([]byte(err.Error()))
		return fmt.Errorf("gateway process: %w", err)
	}
	if _, err := control.Write([]byte(ready)); err != nil {
		return fmt.Errorf("gateway process: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { control.Close() })
	defer stop()
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel() // before the wait
	for {
		session, err := receiveSession(control)
		if errors.Is(err, io.EOF) || ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("gateway process: %w", err)
		}
		running.Go(func() {
			defer session.close()
			select {
			case gw.places <- struct{}{}: // at once, but for one whose end is reported and not yet over
				defer func() { <-gw.places }()
			case <-ctx.Done():
				return
			}
			serveChild(ctx, gw, session)
		})
	}
}

// prepare reads the setup and confines the process.
func prepare(control *net.UnixConn, config func(egress.Table) (Config, error)) (*Gateway, error) {
	b := make([]byte, maxSetup)
	n, err := control.Read(b)
	if err != nil {
		return nil, fmt.Errorf("read the setup: %w", err)
	}
	var c setup
	if err := decode(b[:n], &c); err != nil {
		return nil, fmt.Errorf("read the setup: %w", err)
	}
	table, err := egress.Standard(c.Private...)
	if err != nil {
		return nil, fmt.Errorf("private ranges: %w", err)
	}
	use, err := config(table.Denying(c.Denied...))
	if err != nil {
		return nil, err
	}
	use.Bounds = c.Bounds
	gw, err := New(use)
	if err != nil {
		return nil, err
	}
	if c.Sessions < 1 {
		return nil, errors.New("no session to serve")
	}
	gw.places = make(chan struct{}, c.Sessions)
	if err := confine(c.Memory, c.Files); err != nil {
		return nil, fmt.Errorf("confine: %w", err)
	}
	return gw, nil
}

// handed is what a gateway process is handed of a session.
type handed struct {
	packets net.Conn
	stream  *net.UnixConn
	meter   *meter
}

func (h handed) close() {
	h.packets.Close()
	h.stream.Close()
	h.meter.close()
}

// receiveSession takes the next session's three descriptors. What comes with any
// other number of them is an error, and they are closed.
func receiveSession(control *net.UnixConn) (h handed, err error) {
	var b [1]byte
	oob := make([]byte, unix.CmsgSpace(4*4))
	n, oobn, flags, _, err := control.ReadMsgUnix(b[:], oob)
	if err != nil {
		return handed{}, err
	}
	if n == 0 {
		return handed{}, io.EOF
	}
	var fds []int
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	for _, m := range messages {
		got, err := unix.ParseUnixRights(&m)
		if err == nil {
			fds = append(fds, got...)
		}
	}
	if err != nil || len(fds) != 3 || flags&unix.MSG_CTRUNC != 0 {
		for _, fd := range fds {
			unix.Close(fd)
		}
		return handed{}, fmt.Errorf("a session with %d descriptors", len(fds))
	}
	defer unix.Close(fds[2])
	f := os.NewFile(uintptr(fds[0]), "packets")
	h.packets, err = net.FileConn(f)
	f.Close()
	if err != nil {
		unix.Close(fds[1])
		return handed{}, fmt.Errorf("use the packets: %w", err)
	}
	h.stream, err = connOf(fds[1])
	if err != nil {
		h.packets.Close()
		return handed{}, err
	}
	h.meter, err = mapMeter(fds[2])
	if err != nil {
		h.packets.Close()
		h.stream.Close()
		return handed{}, err
	}
	return h, nil
}

// serveChild serves one session and reports how it ended.
func serveChild(ctx context.Context, gw *Gateway, session handed) {
	box := &mailbox{conn: session.stream}
	var first order
	if err := box.receive(&first, maxOrder); err != nil || first.Start == nil {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	asker := &asker{box: box, answers: make(chan recorded)}
	var listening sync.WaitGroup
	listening.Go(func() {
		defer cancel() // a control plane that is gone ends the session
		defer close(asker.answers)
		for {
			var o order
			if err := box.receive(&o, maxOrder); err != nil {
				return
			}
			switch {
			case o.Stop:
				cancel()
			case o.Recorded != nil:
				asker.answers <- *o.Recorded
			}
		}
	})
	t, err := gw.serve(ctx, session.packets, first.Start.Session, first.Start.Grant, asker, session.meter)
	d := done{Traffic: t}
	if err != nil {
		d.Error = err.Error()
	}
	box.send(report{Done: &d})
	box.conn.Close()
	for range asker.answers {
		// An answer that nobody waits for any more must not keep its reader.
	}
	listening.Wait()
}

// An asker records by asking the control plane, and waits for the answer.
type asker struct {
	box     *mailbox
	mu      sync.Mutex // one question at a time, so that answers need no number
	answers chan recorded
}

// Record implements audit.Recorder.
func (a *asker) Record(ctx context.Context, _ string, t audit.Type, d audit.Data) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	err := a.box.send(report{Attempt: &attempt{
		Type: t, Host: d.Host, Port: d.Port, Protocol: d.Protocol, Reason: egress.Reason(d.Reason), Rule: d.Rule, Count: d.Count,
	}})
	if err != nil {
		return err
	}
	select {
	case r, ok := <-a.answers:
		switch {
		case !ok:
			return errors.New("the control plane is gone")
		case r.Error != "":
			return errors.New(r.Error)
		}
		return nil
	case <-ctx.Done():
		return ctx.Err() // the answer will not be told apart from the next: the ledger asks no more
	}
}

// System returns the configuration of a gateway that leads to the network of this
// host: what t has for public, but never the host's own addresses as of each dial.
// It opens the socket on which the kernel is asked for them, since a process that
// is confined cannot.
func System(t egress.Table) (Config, error) {
	kernel, err := route.Open()
	if err != nil {
		return Config{}, err
	}
	return Config{
		Resolver: ResolverOver((&net.Dialer{}).DialContext),
		Dialer:   systemDialer{kernel.Own},
		Table:    t.Hosted(kernel.Own),
	}, nil
}

// systemDialer dials what is not the host's own.
type systemDialer struct{ own func(netip.Addr) bool }

// DialContext refuses what is not an address, and checks before the connection
// is made that the address is still the one that was judged, and that it has not
// come to this host since: recording takes time.
func (d systemDialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	want, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, fmt.Errorf("dial what is not an address: %w", err)
	}
	dialer := net.Dialer{Control: func(_, real string, _ syscall.RawConn) error {
		if got, err := netip.ParseAddrPort(real); err != nil || got != want {
			return fmt.Errorf("dial %s instead of %s", real, want)
		}
		if d.own(want.Addr()) {
			return fmt.Errorf("dial %s, which is this host's own", want)
		}
		return nil
	}}
	return dialer.DialContext(ctx, network, want.String())
}
