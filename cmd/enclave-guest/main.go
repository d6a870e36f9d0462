//go:build linux

// Command enclave-guest is the first program in every sandbox: PID 1, as root
// inside it. It makes the sandbox's network out of one stream, gives up its
// privileges, and runs what the core sends, as another user. It refuses to
// decide: policy, limits and the record are the core's, outside.
//
// When either of its two connections ends, it kills everything and exits with
// an error.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"github.com/enclave-run/enclave/internal/wire"
)

func main() {
	if filepath.Base(os.Args[0]) == resultCommand {
		os.Exit(runResultCommand(os.Args[1:], os.Stdin, os.Stderr))
	}
	// The first thread is what others see as this process: it must keep its
	// identity, which asUser changes on threads of its own.
	runtime.LockOSThread()
	born := time.Now()
	if inMachine() {
		runMachine(context.Background(), born)
		return
	}
	c, err := readConfig()
	if err == nil {
		err = run(context.Background(), born, c)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "enclave-guest:", err)
		os.Exit(1)
	}
}

// A config is what the backend said.
type config struct {
	address  string   // of the core
	self     string   // this program, as workloads see it
	uid, gid uint32   // of workloads; never 0
	disk     string   // where the file system is of which /work and /tmp are made; empty if they are there
	machine  *machine // nil: the sandbox has no kernel of its own
}

func readConfig() (config, error) {
	self, err := os.Executable()
	if err != nil {
		return config{}, fmt.Errorf("find own file: %w", err)
	}
	c := config{self: self, uid: 1000, gid: 1000}
	switch len(os.Args) {
	case 1:
		c.address = "unix:" + filepath.Join(filepath.Dir(self), wire.SockName)
	case 2:
		c.address = os.Args[1]
	default:
		return config{}, errors.New("usage: enclave-guest [unix:/path/of/the/socket]")
	}
	if c.disk = os.Getenv("ENCLAVE_GUEST_DISK"); c.disk != "" && !filepath.IsAbs(c.disk) {
		return config{}, fmt.Errorf("ENCLAVE_GUEST_DISK=%q is not an absolute path", c.disk)
	}
	for name, id := range map[string]*uint32{"ENCLAVE_GUEST_UID": &c.uid, "ENCLAVE_GUEST_GID": &c.gid} {
		s := os.Getenv(name)
		if s == "" {
			continue
		}
		n, err := strconv.ParseUint(s, 10, 32)
		if err != nil || n == 0 || n == 1<<32-1 {
			return config{}, fmt.Errorf("%s=%q is not the id of an unprivileged user or group", name, s)
		}
		*id = uint32(n)
	}
	return c, nil
}

// run is the guest's life. It returns nil only after Shutdown.
func run(ctx context.Context, born time.Time, c config) error {
	// Killing everything but itself is what PID 1 does at the end of each
	// workload. Anywhere else that would be the host's processes.
	if os.Getpid() != 1 {
		return errors.New("not started as PID 1 of a sandbox")
	}
	if c.disk != "" {
		if err := takeDisk(c.disk); err != nil {
			return err
		}
	}
	tun, ipv6, err := makeNetwork()
	if err != nil {
		return err
	}
	packets, err := wire.Dial(ctx, c.address, wire.Packets, wire.Key{})
	if err != nil {
		return err
	}
	control, err := wire.Dial(ctx, c.address, wire.Control, wire.Key{})
	if err != nil {
		return err
	}
	keep := kept
	if c.machine != nil {
		keep |= toRestart
	}
	if err := confine(keep); err != nil {
		return err
	}
	syscall.Umask(0o022)
	if err := makeRunDir(c.self); err != nil {
		return err
	}

	failed := make(chan error, 5)
	var workloads *group
	if m := c.machine; m != nil {
		workloads, m.counted = m.group, true
		go func() { failed <- m.report() }()
	}
	pump := newPump(tun, packets)
	go func() { failed <- pump.out() }()
	go func() { failed <- pump.in() }()

	table := newTable(c.uid, c.gid, workloads)
	go table.reap()
	results, err := listenForResults(table)
	if err != nil {
		return err
	}
	go func() { failed <- results.serve() }()

	s := &server{
		table: table, files: files{c.uid, c.gid}, pump: pump,
		hello: wire.Hello{
			Version: wire.Version, IPv6: ipv6, UID: c.uid, Confined: true,
			Micros: time.Since(born).Microseconds(),
		},
		done: make(chan struct{}), gone: make(chan struct{}),
	}
	go func() {
		err := s.serve(control)
		close(s.gone)
		failed <- err
	}()

	select {
	case <-s.done:
		return s.leave()
	case err = <-failed:
	}
	// A shut-down that has begun ends in order even if the core hangs up first.
	if table.isClosed() {
		select {
		case <-s.done:
			return s.leave()
		case <-time.After(drainLimit + killLimit):
		}
	}
	table.close()
	return err
}

// makeRunDir fills the directory that workloads read and only the guest writes.
func makeRunDir(self string) error {
	if err := os.MkdirAll(filepath.Join(wire.RunDir, "bin"), 0o755); err != nil {
		return fmt.Errorf("make the run directory: %w", err)
	}
	if err := os.Symlink(self, filepath.Join(wire.RunDir, "bin", resultCommand)); err != nil {
		return fmt.Errorf("make the result command: %w", err)
	}
	return nil
}
