package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/enclave-run/enclave/internal/backend/all"
	"github.com/enclave-run/enclave/internal/image"
	"github.com/enclave-run/enclave/internal/statedir"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func (p *program) uninstallCommand() *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use:   "uninstall",
		Short: "Remove everything Enclave keeps on this host",
		Long: `Uninstall stops the background control plane, destroys its sandboxes, and removes
the state directory with sessions, audit records, keys and images, and what is
mounted in it. It touches only a directory that Enclave made, and names what it
removes before it asks. An image that a Docker daemon was given stays there, for
others may use it: ` + "`docker image ls enclave-sandbox`" + ` lists them.`,
		Example: `  sudo enclave audit export s-1a2b3c-7 -o record.json   # keep what you need first
  sudo enclave uninstall
  sudo enclave uninstall --state /srv/enclave --yes`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.uninstall(cmd.Context(), yes)
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return c
}

func (p *program) uninstall(ctx context.Context, yes bool) error {
	s, err := statedir.Find(p.opts.State)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("there is nothing at %s: it is not installed here, or elsewhere (--state)", p.opts.State)
	}
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		info, err := os.Stat(s.Path)
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); !ok || int(st.Uid) != os.Geteuid() {
			return fmt.Errorf("%s is not yours: sudo enclave uninstall", s.Path)
		}
	}
	if h, held, err := s.Held(); err != nil {
		return err
	} else if held && h.Mode == statedir.ModeServe {
		return fmt.Errorf("`enclave serve` (process %d) has %s: stop it with `kill %d` first", h.PID, s.Path, h.PID)
	}
	fmt.Fprintf(p.err, "this removes %s:\n", s.Path)
	for _, line := range s.Contents() {
		fmt.Fprintf(p.err, "  %s\n", visible(line))
	}
	if !yes {
		if !typed(p.in) {
			return errors.New("nothing was removed: say --yes")
		}
		fmt.Fprint(p.err, "remove all of it? [y/N] ")
		answer, _ := bufio.NewReader(p.in).ReadString('\n')
		if a := strings.ToLower(strings.TrimSpace(answer)); a != "y" && a != "yes" {
			return errors.New("nothing was removed")
		}
	}
	if err := stopBackground(ctx, s); err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, 3*leaseGrace)
	defer cancel()
	locked, err := s.Lock(wait, statedir.ModeCommand)
	if err != nil {
		return err
	}
	defer locked.Unlock()
	if err := p.sweepTemp(ctx, s); err != nil {
		return err
	}
	if err := p.removeState(ctx, locked, s.File("bin")); err != nil {
		return err
	}
	exe, err := os.Executable()
	if err != nil {
		exe = "enclave"
	}
	_, err = fmt.Fprintf(p.err, "removed %s; what is left is this program: rm %s\n", s.Path, exe)
	return err
}

// stopBackground ends the background control plane of s, if there is one, and
// waits until it has gone.
func stopBackground(ctx context.Context, s *statedir.Dir) error {
	h, held, err := s.Held()
	if err != nil || !held || h.Mode != statedir.ModeEmbedded || h.PID <= 1 {
		return err
	}
	// The lock proves that its holder lives, and a pidfd that it is the one that
	// gets the signal (pidfd_open(2)).
	fd, err := unix.PidfdOpen(h.PID, 0)
	if err != nil {
		return nil // it has just ended by itself
	}
	defer unix.Close(fd)
	if again, held, err := s.Held(); err != nil || !held || again.PID != h.PID {
		return err
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("stop the background control plane (process %d): %w", h.PID, err)
	}
	// What it does not end in time, the second signal leaves to us: its sandboxes
	// are destroyed next, and nobody will read what they were about to say.
	for _, wait := range []time.Duration{time.Second, stopTime} {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(wait.Milliseconds()))
		if n > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for process %d: %w", h.PID, err)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		_ = unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0)
	}
	return fmt.Errorf("the background control plane (process %d) does not end: kill -9 %d", h.PID, h.PID)
}

// removeState destroys what the instance of s has in the kernel and then removes
// s itself. bin is where programs are unpacked.
func (p *program) removeState(ctx context.Context, s *statedir.Locked, bin string) error {
	return s.Remove(func() error { return p.destroyAll(ctx, s, bin) })
}

// destroyAll destroys every sandbox of s's instance.
func (p *program) destroyAll(ctx context.Context, s *statedir.Locked, bin string) error {
	if os.Geteuid() != 0 {
		return nil // who is not root has only simulated sandboxes, which end with their process
	}
	images, err := image.Open(s.File("images"))
	if err != nil {
		return err
	}
	host := p.hostOf(s.Dir, images)
	host.Programs = p.programs(bin)
	for _, k := range all.Kinds() {
		if err := k.Clear(ctx, host); err != nil {
			return err
		}
	}
	return nil
}

// sweepTemp removes the state directories of demos that were killed.
func (p *program) sweepTemp(ctx context.Context, s *statedir.Dir) error {
	entries, err := os.ReadDir(s.File("tmp"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		t, err := statedir.Find(s.File("tmp", e.Name()))
		if err != nil {
			continue // not a state directory: nothing outside it depends on it
		}
		ended, cancel := context.WithCancel(ctx)
		cancel()
		locked, err := t.Lock(ended, statedir.ModeCommand)
		if errors.As(err, new(*statedir.HeldError)) {
			continue // a demo that is running
		}
		if err != nil {
			return err
		}
		err = p.removeState(ctx, locked, s.File("bin"))
		locked.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}
