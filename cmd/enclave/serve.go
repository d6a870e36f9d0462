package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/enclave-run/enclave/internal/backend/all"
	"github.com/enclave-run/enclave/internal/control"
	"github.com/enclave-run/enclave/internal/httpapi"
	"github.com/enclave-run/enclave/internal/image"
	"github.com/enclave-run/enclave/internal/server"
	"github.com/enclave-run/enclave/internal/statedir"
	"github.com/enclave-run/enclave/internal/ui"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// lockWait is how long a background control plane waits for one that is ending.
const lockWait = 15 * time.Second

func (p *program) serveCommand() *cobra.Command {
	var embedded bool
	c := &cobra.Command{
		Use:   "serve",
		Short: "Run a control plane for this host",
		Long: `Serve runs a control plane: an HTTP API on a loopback address, and for this
host's root on a socket in the state directory, which the other commands use.

At its first start it makes the state directory, prints the root API key, which
is shown only then, and builds the image that sandboxes start from.`,
		Example: `  sudo enclave serve
  sudo enclave serve --listen 127.0.0.1:9000 --state /srv/enclave`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if embedded {
				return p.serveEmbedded(cmd.Context())
			}
			return p.serve(cmd.Context())
		},
	}
	p.opts.Serve.flags(c)
	c.Flags().BoolVar(&embedded, "embedded", false, "serve the socket alone, and end with the last client")
	_ = c.Flags().MarkHidden("embedded") // only run starts it so
	return c
}

// serve runs a control plane until it is told to end.
func (p *program) serve(ctx context.Context) error {
	if err := p.opts.Serve.validate(); err != nil {
		return err
	}
	kind, err := p.chooseBackend(ctx)
	if err != nil {
		return err
	}
	s, err := statedir.Open(p.opts.State)
	if err != nil {
		return err
	}
	// A background control plane without clients is about to end.
	wait, cancel := context.WithTimeout(ctx, 3*server.LeaseGrace)
	if h, held, err := s.Held(); err == nil && held && h.Mode != statedir.ModeEmbedded {
		cancel()
	}
	locked, err := s.Lock(wait, statedir.ModeServe)
	cancel()
	if err != nil {
		return err
	}
	defer locked.Unlock()
	tcp, err := net.Listen("tcp", p.opts.Serve.Listen)
	if err != nil {
		return portTaken(p.opts.Serve.Listen, err)
	}
	defer tcp.Close()
	if err := locked.Describe(statedir.Holder{PID: os.Getpid(), Mode: statedir.ModeServe, Listen: tcp.Addr().String()}); err != nil {
		return statedir.Unwritable(s.Path, err)
	}
	return p.host(ctx, locked, kind, tcp, p.err)
}

// serveEmbedded runs the control plane behind `enclave run`. It says on the
// ready pipe that it serves, or why it does not.
func (p *program) serveEmbedded(ctx context.Context) (err error) {
	ready := os.NewFile(server.ReadyFD, "ready")
	unix.CloseOnExec(server.ReadyFD)
	defer func() {
		if err != nil {
			_, _ = io.WriteString(ready, err.Error()) // the client may be gone; the log has it too
		}
		ready.Close()
	}()
	if err := cmp.Or(p.opts.Serve.Observe.validate(), p.opts.Serve.Webhook.validate()); err != nil {
		return err
	}
	kind, err := p.chooseBackend(ctx)
	if err != nil {
		return err
	}
	s, err := statedir.Open(p.opts.State)
	if err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	locked, err := s.Lock(wait, statedir.ModeEmbedded)
	if err != nil {
		return err
	}
	defer locked.Unlock()
	return p.host(ctx, locked, kind, nil, ready)
}

// host runs a control plane on a locked state directory: on tcp and the
// socket, or, if tcp is nil, on the socket until nobody needs it. Where it is
// reached, or that it serves, is said on say.
func (p *program) host(ctx context.Context, s *statedir.Locked, kind all.Kind, tcp net.Listener, say io.Writer) (err error) {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	c, err := p.opts.Serve.config()
	if err != nil {
		return err
	}
	patience, err := p.opts.Serve.Admission.drain()
	if err != nil {
		return err
	}
	if tcp == nil && c.Admission.Usual.PerMinute == 0 {
		c.Admission.Usual.PerMinute = control.Unlimited // nobody drives it but this host's root
	}
	logger, err := p.opts.Serve.Observe.logger(p.err)
	if err != nil {
		return err
	}
	images, err := image.Open(s.File("images"))
	if err != nil {
		return err
	}
	c.State, c.Host, c.Kind, c.Logger = s, p.hostOf(s.Dir, images), kind, logger
	n, err := p.assemble(ctx, c)
	if err != nil {
		return err
	}
	// What can't go on can't be ended in order either: that is not said twice.
	failed := false
	ending := func(more error) {
		if more != nil && failed {
			logger.Warn("ending out of order", "err", more)
			return
		}
		err = errors.Join(err, more)
	}
	defer func() {
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), server.StopTime)
		defer cancel()
		ending(n.Close(stop))
	}()
	mode := statedir.ModeServe
	if tcp == nil {
		mode = statedir.ModeEmbedded
	}
	holders := server.NewLeases(server.Greeting{Mode: mode, Backend: kind.Name, Version: version})
	api := n.HTTP.Handler
	socket, err := statedir.Listen(s.Socket())
	if err != nil {
		return err
	}
	defer os.Remove(s.Socket())
	// Leases are taken on the socket alone.
	n.HTTP.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, local := r.Context().Value(http.LocalAddrContextKey).(*net.UnixAddr); local && r.URL.Path == server.LeasePath {
			holders.ServeHTTP(w, r)
			return
		}
		api.ServeHTTP(w, r)
	})
	ended := make(chan error, 3)
	go func() { ended <- n.HTTP.Serve(socket) }()
	if tcp != nil {
		size, err := server.MeasureHost(s.Path)
		if err != nil {
			return err
		}
		tcp = httpapi.NewDoor(tcp, size.Connections())
		at := &place{url: "http://" + tcp.Addr().String(), state: s.Path}
		if access := &p.opts.Serve.Access; access.encrypted() {
			cert, err := access.certificate(s.Dir, tcp.Addr().String(), p.now, logger)
			if err != nil {
				return err
			}
			tcp = cert.Listener(tcp)
			at.url, at.fingerprint = "https://"+tcp.Addr().String(), cert.Fingerprint()
		} else if access.InsecurePlain {
			logger.Warn("plain HTTP: every machine on the way can read the credentials and all else", "listen", tcp.Addr().String())
		}
		go func() { ended <- n.HTTP.Serve(tcp) }()
		if err := p.welcome(ctx, n.Store, at); err != nil {
			return err
		}
		var building sync.WaitGroup
		building.Go(func() { p.firstImage(ctx, images, kind) })
		defer func() { cancel(); building.Wait() }()
	} else {
		if _, err := io.WriteString(say, server.ReadyWord); err != nil {
			logger.Warn("the client that started this control plane is gone", "err", err)
		}
		if c, ok := say.(io.Closer); ok {
			c.Close()
		}
		go func() {
			if holders.Unused(ctx, server.LeaseGrace, func() bool { return n.Plane.Active() > 0 }) == nil {
				ended <- nil
			}
		}()
	}

	select {
	case err = <-ended:
	case err = <-n.Failed:
		err = fmt.Errorf("the control plane can't go on: %w", server.Broken(err, s.Path))
		failed = true
		logger.Error("ending at once", "err", err, "sessions", n.Plane.Active())
		patience = 0 // nothing that sessions still do would be kept
	case sig := <-signals:
		logger.Info("ending", "signal", sig.String(), "sessions", n.Plane.Active())
		go func() {
			if _, ok := <-signals; ok {
				os.Exit(ui.SignalStatus(sig)) // the second one does not wait
			}
		}()
	}
	// New sessions are refused at once. Those that run end first, while their
	// clients can still follow them; then streams and leases, then requests.
	stop, done := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer done()
	ending(n.Stop(stop))
	holders.End()
	last, done := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer done()
	if n.HTTP.Shutdown(last) != nil {
		n.HTTP.Close()
	}
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	return err
}

// firstImage builds the default image if there is none. Until then the control
// plane answers, and says that it is not ready.
func (p *program) firstImage(ctx context.Context, images *image.Store, kind all.Kind) {
	if err := p.ensureImage(ctx, images, kind, false); err != nil && ctx.Err() == nil {
		fmt.Fprintf(p.err, "enclave: %s\n", ui.Message(err))
	}
}

func portTaken(addr string, err error) error {
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("address %s is taken by another program: choose another with `enclave serve --listen 127.0.0.1:PORT`", addr)
	}
	return fmt.Errorf("listen on %s: %w", addr, err)
}
