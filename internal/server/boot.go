package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/auth"
	"github.com/enclave-run/enclave/internal/backend/all"
	"github.com/enclave-run/enclave/internal/control"
	"github.com/enclave-run/enclave/internal/egress"
	"github.com/enclave-run/enclave/internal/statedir"
)

// A Booter starts control planes that last as long as their caller: for demos,
// measurements and certificates.
type Booter struct {
	// Above is the state directory in which each has its own, and whose images,
	// kernels and programs they use. Host is what backends are opened on there.
	Above   *statedir.Dir
	Host    all.Host
	Now     func() time.Time
	Version string
	Crash   io.Writer // what a gateway process says when it crashes
}

// A Boot says what kind of control plane to start.
type Boot struct {
	Kind   all.Kind
	Logger *slog.Logger
	// Gateway and Table replace the gateway process and the table of public
	// addresses. Only a positive control sets them.
	Gateway control.Gateway
	Table   *egress.Table
	Places  int // sessions that run, and that wait, at once; 0 is as usual
}

// A Booted is a control plane that was started, in this process, on a free loopback
// port, with a key that nobody else has.
type Booted struct {
	*Server
	URL, Key string
	Client   *enclave.Client
	State    *statedir.Dir // its own
	Host     all.Host      // what its backend was opened on

	close func(context.Context) error
}

// Close ends the control plane and removes every trace of it.
func (b *Booted) Close(ctx context.Context) error { return b.close(ctx) }

// Boot starts a control plane. The caller closes it.
func (r Booter) Boot(ctx context.Context, b Boot) (_ *Booted, err error) {
	var undo []func(context.Context) error
	closeAll := func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, StopTime)
		defer cancel()
		var errs []error
		for i := len(undo) - 1; i >= 0; i-- {
			errs = append(errs, undo[i](ctx))
		}
		undo = nil
		return errors.Join(errs...)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, closeAll(context.WithoutCancel(ctx)))
		}
	}()

	dir, err := os.MkdirTemp(r.Above.File("tmp"), "demo-")
	if err != nil {
		return nil, statedir.Unwritable(r.Above.Path, err)
	}
	undo = append(undo, func(context.Context) error { return os.RemoveAll(dir) })
	own, err := statedir.Open(dir)
	if err != nil {
		return nil, err
	}
	locked, err := own.Lock(ctx, statedir.ModeCommand)
	if err != nil {
		return nil, err
	}
	undo = append(undo, func(ctx context.Context) error {
		defer locked.Unlock()
		return Remove(ctx, locked, r.Host)
	})
	host := r.Host
	host.Dir, host.Instance = own.Path, own.Instance
	srv, err := New(ctx, Config{
		State: locked, Host: host, Kind: b.Kind, Logger: b.Logger, Now: r.Now, Version: r.Version, Crash: r.Crash,
		Gateway: b.Gateway, Table: b.Table,
		Admission: Admission{Running: b.Places, Waiting: b.Places, Usual: control.Quotas{PerMinute: control.Unlimited, Waiting: b.Places}},
	})
	if err != nil {
		return nil, err
	}
	undo = append(undo, srv.Close)
	k, plaintext, err := auth.Generate(r.Now(), auth.Local().Org, "demo", auth.Owner)
	if err != nil {
		return nil, err
	}
	if err := srv.Store.SaveKey(ctx, k); err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen on a free port: %w", err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.HTTP.Serve(l) }()
	undo = append(undo, func(ctx context.Context) error {
		err := srv.HTTP.Shutdown(ctx)
		if serr := <-served; !errors.Is(serr, http.ErrServerClosed) {
			err = errors.Join(err, serr)
		}
		return err
	})
	url := "http://" + l.Addr().String()
	return &Booted{
		Server: srv, URL: url, Key: plaintext, Client: &enclave.Client{BaseURL: url, APIKey: plaintext},
		State: own, Host: host, close: closeAll,
	}, nil
}
