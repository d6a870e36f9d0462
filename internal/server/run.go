package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/enclave-run/enclave/internal/httpapi"
	"github.com/enclave-run/enclave/internal/statedir"
)

// A Run is how a control plane is served until it ends.
type Run struct {
	// TCP is where it is reached besides its socket. Without one it ends once nobody
	// holds it and no session runs.
	TCP net.Listener
	// Ready is called once it is served.
	Ready func(context.Context) error
	// Signals end it: the first one in order.
	Signals <-chan os.Signal
	// Drain is for how long sessions that run may go on then.
	Drain time.Duration
}

// Door bounds how many connections of l are open at once, by the descriptors that
// this process may have.
func (srv *Server) Door(l net.Listener) (net.Listener, error) {
	size, err := measureHost(srv.config.State.Path)
	if err != nil {
		return nil, err
	}
	return httpapi.NewDoor(l, size.connections()), nil
}

// Run serves srv until it is told to end, can't go on, or nobody needs it. The caller
// closes srv whatever it returns: failed is whether it could not go on, so that it
// can't be expected to end in order.
func (srv *Server) Run(ctx context.Context, r Run) (failed bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c := srv.config
	mode := statedir.ModeServe
	if r.TCP == nil {
		mode = statedir.ModeEmbedded
	}
	holders := newLeases(Greeting{Mode: mode, Backend: c.Kind.Name, Version: c.Version})
	socket, err := statedir.Listen(c.State.Socket())
	if err != nil {
		return false, err
	}
	defer os.Remove(c.State.Socket())
	// leases are taken on the socket alone.
	api := srv.HTTP.Handler
	srv.HTTP.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, local := r.Context().Value(http.LocalAddrContextKey).(*net.UnixAddr); local && r.URL.Path == leasePath {
			holders.ServeHTTP(w, r)
			return
		}
		api.ServeHTTP(w, r)
	})
	ended := make(chan error, 3)
	go func() { ended <- srv.HTTP.Serve(socket) }()
	if r.TCP != nil {
		go func() { ended <- srv.HTTP.Serve(r.TCP) }()
	}
	if err := r.Ready(ctx); err != nil {
		return false, err
	}
	if r.TCP == nil {
		go func() {
			if holders.unused(ctx, LeaseGrace, func() bool { return srv.Plane.Active() > 0 }) == nil {
				ended <- nil
			}
		}()
	}

	patience := r.Drain
	select {
	case err = <-ended:
	case err = <-srv.Failed:
		err = fmt.Errorf("the control plane can't go on: %w", broken(err, c.State.Path))
		failed = true
		c.Logger.Error("ending at once", "err", err, "sessions", srv.Plane.Active())
		patience = 0 // nothing that sessions still do would be kept
	case sig := <-r.Signals:
		c.Logger.Info("ending", "signal", sig.String(), "sessions", srv.Plane.Active())
	}
	// New sessions are refused at once. Those that run end first, while their
	// clients can still follow them; then streams and leases, then requests.
	stop, done := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer done()
	if serr := srv.Stop(stop); serr != nil && failed {
		c.Logger.Warn("ending out of order", "err", serr)
	} else {
		err = errors.Join(err, serr)
	}
	holders.end()
	last, done := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer done()
	if srv.HTTP.Shutdown(last) != nil {
		srv.HTTP.Close()
	}
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	return failed, err
}
