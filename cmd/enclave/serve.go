package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/enclave-run/enclave/internal/backend/all"
	"github.com/enclave-run/enclave/internal/control"
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
	defer func() { signal.Stop(signals); close(signals) }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	c, err := p.opts.Serve.config()
	if err != nil {
		return err
	}
	drain, err := p.opts.Serve.Admission.drain()
	if err != nil {
		return err
	}
	if tcp == nil && c.Admission.Usual.PerMinute == 0 {
		c.Admission.Usual.PerMinute = control.Unlimited // nobody drives it but this host's root
	}
	if c.Logger, err = p.opts.Serve.Observe.logger(p.err); err != nil {
		return err
	}
	images, err := image.Open(s.File("images"))
	if err != nil {
		return err
	}
	c.State, c.Host, c.Kind = s, p.hostOf(s.Dir, images), kind
	srv, err := p.assemble(ctx, c)
	if err != nil {
		return err
	}
	failed := false
	defer func() {
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), server.StopTime)
		defer cancel()
		// What can't go on can't be ended in order either: that is not said twice.
		if cerr := srv.Close(stop); cerr != nil && failed {
			c.Logger.Warn("ending out of order", "err", cerr)
		} else {
			err = errors.Join(err, cerr)
		}
	}()
	ready := func(context.Context) error {
		if _, err := io.WriteString(say, server.ReadyWord); err != nil {
			c.Logger.Warn("the client that started this control plane is gone", "err", err)
		}
		if c, ok := say.(io.Closer); ok {
			c.Close()
		}
		return nil
	}
	if tcp != nil {
		var at *place
		if tcp, at, err = p.listener(srv, s, tcp, c.Logger); err != nil {
			return err
		}
		var building sync.WaitGroup
		defer func() { cancel(); building.Wait() }()
		ready = func(ctx context.Context) error {
			if err := p.welcome(ctx, srv.Store, at); err != nil {
				return err
			}
			building.Go(func() { p.firstImage(ctx, images, kind) })
			return nil
		}
	}
	failed, err = srv.Run(ctx, server.Run{TCP: tcp, Ready: ready, Signals: once(signals), Drain: drain})
	return err
}

// listener is where the API is reached: over TLS, if the operator says so.
func (p *program) listener(srv *server.Server, s *statedir.Locked, tcp net.Listener, logger *slog.Logger) (net.Listener, *place, error) {
	tcp, err := srv.Door(tcp)
	if err != nil {
		return nil, nil, err
	}
	at := &place{url: "http://" + tcp.Addr().String(), state: s.Path}
	if access := &p.opts.Serve.Access; access.encrypted() {
		cert, err := access.certificate(s.Dir, tcp.Addr().String(), p.now, logger)
		if err != nil {
			return nil, nil, err
		}
		tcp = cert.Listener(tcp)
		at.url, at.fingerprint = "https://"+tcp.Addr().String(), cert.Fingerprint()
	} else if access.InsecurePlain {
		logger.Warn("plain HTTP: every machine on the way can read the credentials and all else", "listen", tcp.Addr().String())
	}
	return tcp, at, nil
}

// once passes the first signal on. The second ends the program at once.
func once(signals <-chan os.Signal) <-chan os.Signal {
	first := make(chan os.Signal, 1)
	go func() {
		sig, more := <-signals
		if !more {
			return
		}
		first <- sig
		if _, more = <-signals; more {
			os.Exit(ui.SignalStatus(sig))
		}
	}()
	return first
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
