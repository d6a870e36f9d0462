package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"sync"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/control"
	"github.com/enclave-run/enclave/internal/egress"
	"github.com/enclave-run/enclave/internal/gateway"
)

const (
	gatewayUser   = 64741   // of nobody else: above what Debian gives to users and services
	gatewayMemory = 1 << 30 // bytes
	gatewayFiles  = 65536
)

// gatewayCommand is the gateway process, which only a control plane starts.
func (p *program) gatewayCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "gateway",
		Short:  "Serve sandboxes' ways out (started by the control plane)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE:   func(cmd *cobra.Command, _ []string) error { return gateway.RunChild(cmd.Context()) },
	}
}

// A gate is the gateway that a node serves with.
type gate interface {
	control.Gateway
	close(context.Context) error
}

// startGateway starts the gateway process. Who is not root can give it no user
// of its own; there the gateway runs in this process, which is enough for the
// simulator, the only backend that does without root: its packets are our own.
func startGateway(ctx context.Context, logger *slog.Logger) (gate, error) {
	if os.Geteuid() != 0 {
		t, err := egress.Standard()
		if err != nil {
			return nil, err
		}
		c, err := gateway.System(t)
		if err != nil {
			return nil, err
		}
		g, err := gateway.New(c)
		return inProcess{g}, err
	}
	g := &gateways{logger: logger, config: gateway.SpawnConfig{
		Argv: []string{"/proc/self/exe", "gateway"},
		UID:  gatewayUser, GID: gatewayUser,
		Memory: gatewayMemory, Files: gatewayFiles,
		Stderr: os.Stderr,
	}}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err == nil && limit.Max < g.config.Files {
		g.config.Files = limit.Max // only down: the process may not raise it
	}
	_, err := g.process(ctx)
	return g, err
}

type inProcess struct{ *gateway.Gateway }

func (inProcess) close(context.Context) error { return nil }

// gateways is the gateway process, and its successor when it dies: the death of
// one ends the sessions that it served, and no others.
type gateways struct {
	config gateway.SpawnConfig
	logger *slog.Logger

	mu     sync.Mutex
	now    *gateway.Process
	closed bool
}

// process returns the process that lives, and starts one if none does.
func (g *gateways) process(ctx context.Context) (*gateway.Process, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, errors.New("the gateway is closed")
	}
	if g.now != nil {
		err := g.now.Err()
		if err == nil {
			return g.now, nil
		}
		g.logger.Error("the gateway process died and is started again", "err", err)
		g.now = nil
	}
	p, err := gateway.Spawn(ctx, g.config)
	if err != nil {
		return nil, err
	}
	g.now = p
	return p, nil
}

// Serve keeps the promises of control.Gateway.
func (g *gateways) Serve(ctx context.Context, packets net.Conn, session string, grant egress.Grant, rec audit.Recorder) (egress.Traffic, error) {
	p, err := g.process(ctx)
	if err != nil {
		packets.Close()
		return egress.Traffic{}, err
	}
	return p.Serve(ctx, packets, session, grant, rec)
}

func (g *gateways) close(context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	if g.now == nil {
		return nil
	}
	return g.now.Close()
}
