package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/control"
	"github.com/enclave-run/enclave/internal/egress"
	"github.com/enclave-run/enclave/internal/gateway"
)

const (
	GatewayUser  = 64741 // of nobody else: above what Debian gives to users and services
	gatewayFiles = 65536
)

// A gate is the gateway that a server serves with.
type gate interface {
	control.Gateway
	Close(context.Context) error
}

// gatewayMemory is the memory of a gateway process for so many sessions: what
// they may take of it at most, or three quarters of this host's if that is less.
// Then each session may take less.
func gatewayMemory(sessions int) (int64, error) {
	var host unix.Sysinfo_t
	if err := unix.Sysinfo(&host); err != nil {
		return 0, fmt.Errorf("ask for this host's memory: %w", err)
	}
	memory := min(gateway.MemoryFor(sessions, gateway.SessionMemory), int64(host.Totalram)*int64(host.Unit)/4*3)
	return memory, EnoughMemory(sessions, memory)
}

// EnoughMemory returns an error if so many sessions may take more than memory
// of a gateway process.
func EnoughMemory(sessions int, memory int64) error {
	if least := gateway.LeastMemory(sessions); memory < least {
		return fmt.Errorf("the gateway of %d sessions needs %d MiB of memory, and has %d: give it more with --gateway-memory, or run fewer sessions with --max-running", sessions, least>>20, memory>>20)
	}
	return nil
}

// GatewayNeeds are what a gateway process is for.
type GatewayNeeds struct {
	Sessions int    // at once
	memory   int64  // bytes; 0 is gatewayMemory's
	meters   string // the directory of their byte counts; "" keeps them in memory
}

// StartGateway starts the gateway process. Without root it can't be given its own
// user; there the gateway runs in this process, which is enough for the
// simulator, the only backend that does without root: its packets are our own.
// What the process says when it crashes goes to crash.
func StartGateway(ctx context.Context, logger *slog.Logger, needs GatewayNeeds, crash io.Writer) (gate, error) {
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
		UID:  GatewayUser, GID: GatewayUser,
		Sessions: needs.Sessions, Memory: needs.memory, Files: gatewayFiles, Meters: needs.meters,
		Stderr: crash,
	}}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err == nil && limit.Max < g.config.Files {
		g.config.Files = limit.Max // only down: the process may not raise it
	}
	var err error
	if needs.memory == 0 {
		if g.config.Memory, err = gatewayMemory(needs.Sessions); err != nil {
			return nil, err
		}
	} else if err := EnoughMemory(needs.Sessions, needs.memory); err != nil {
		return nil, err
	}
	if needs.meters != "" {
		// The sessions that these are of have ended, or are ended at this start.
		if err := gateway.ClearMeters(needs.meters); err != nil {
			return nil, err
		}
	}
	if _, err := gateway.BoundsFor(g.config.Memory, g.config.Files, needs.Sessions); err != nil {
		return nil, fmt.Errorf("%w: raise the limit of open files (LimitNOFILE= of its unit, or ulimit -n), or run fewer sessions with --max-running", err)
	}
	_, err = g.process(ctx)
	return g, err
}

type inProcess struct{ *gateway.Gateway }

func (inProcess) Close(context.Context) error { return nil }

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

func (g *gateways) Close(context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	if g.now == nil {
		return nil
	}
	return g.now.Close()
}
