// Package docker is a backend whose sandboxes are containers of a Docker daemon
// on this host. They share the host's kernel: it is a convenience of development
// and not a security boundary, and says so. It refuses a daemon whose containers
// it could not confine or count, and it gives a container no network: the only
// way out is the socket that Listen opens.
//
// Who may talk to a Docker daemon is root on its host. It never touches a
// container without this instance's labels.
package docker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/client"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/cgroup"
	"github.com/enclave-run/enclave/internal/image"
	"github.com/enclave-run/enclave/internal/keep"
	"github.com/enclave-run/enclave/internal/watch"
)

// DefaultHost is where a daemon listens unless it was told otherwise.
const DefaultHost = "unix:///var/run/docker.sock"

// Config is what a Backend needs. Every field is required.
type Config struct {
	// Dir is the state directory, of this backend only, on a file system that
	// the daemon sees at the same path.
	Dir string

	// Instance marks what this control plane makes: nothing else is listed or
	// touched. It is 1 to 40 of [a-z0-9-].
	Instance string

	// Host is the daemon's socket, unix:///path. A daemon elsewhere would run
	// sandboxes that nobody here can measure.
	Host string

	// Guest is the program enclave-guest.
	Guest string

	// Images has the images of sandboxes.
	Images *image.Store
}

// A Backend is a backend.Backend on Docker. Its state is in its directory, in
// the daemon and in the kernel: another value on the same Config goes on with its
// sandboxes.
type Backend struct {
	dir      string
	instance string
	host     string
	guest    string
	images   *image.Store
	tree     *cgroup.Tree
	api      *client.Client
	load     sync.Mutex // held while an image is brought to the daemon

	closing  chan struct{} // closed by Close
	watchers sync.WaitGroup
	idlers   watch.Idlers

	mu        sync.Mutex // guards what follows
	closed    bool
	sandboxes map[backend.ID]*sandbox
}

var (
	_ backend.Backend = (*Backend)(nil)
	_ backend.Checker = (*Backend)(nil)
)

// askTime bounds a question to the daemon.
const askTime = 10 * time.Second

// New returns a backend and resumes the enforcement of the limits of every
// sandbox that it finds. What the host or its daemon lacks is an error that wraps
// backend.ErrUnavailable and says it in words.
func New(c Config) (*Backend, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("%w: docker needs root, to measure its containers", backend.ErrUnavailable)
	}
	tree, err := cgroup.Host()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", backend.ErrUnavailable, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), askTime)
	defer cancel()
	api, err := Dial(ctx, c.Host)
	if err != nil {
		return nil, err
	}
	dir, err := keep.Dir(c.Dir)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open docker state: %w", err), api.Close())
	}
	guest, err := keep.Guest(dir, c.Guest)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("keep a copy of the guest: %w", err), api.Close())
	}
	b := &Backend{
		dir: dir, instance: c.Instance, host: c.Host, guest: guest, images: c.Images, tree: tree, api: api,
		closing: make(chan struct{}), sandboxes: map[backend.ID]*sandbox{},
	}
	b.watchers.Go(func() { b.idlers.Beat(b.closing) })
	ids, err := b.List(ctx)
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	for _, id := range ids {
		// A sandbox that can't be resumed is still listed; Wait and Destroy say
		// what is wrong with it.
		b.resume(id)
	}
	return b, nil
}

// Dial connects to the daemon at host and makes sure that it can run sandboxes.
// What it lacks is an error that wraps backend.ErrUnavailable.
func Dial(ctx context.Context, host string) (*client.Client, error) {
	if path, ok := strings.CutPrefix(host, "unix://"); !ok || !filepath.IsAbs(path) {
		return nil, fmt.Errorf("%w: the Docker daemon at %q is not a socket of this host, unix:///path", backend.ErrUnavailable, host)
	}
	api, err := client.New(client.WithHost(host))
	if err != nil {
		return nil, fmt.Errorf("%w: docker: %w", backend.ErrUnavailable, err)
	}
	info, err := api.Info(ctx, client.InfoOptions{})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%w: no Docker daemon answers at %s: start it, or name its socket with DOCKER_HOST: %w", backend.ErrUnavailable, host, err), api.Close())
	}
	if err := suits(info.Info.OSType, info.Info.CgroupDriver, info.Info.SecurityOptions); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: the Docker daemon at %s %w", backend.ErrUnavailable, host, err), api.Close())
	}
	return api, nil
}

// suits says why a daemon can't run sandboxes.
func suits(os, cgroups string, security []string) error {
	filtered := false
	for _, o := range security {
		name, rest, _ := strings.Cut(strings.TrimPrefix(o, "name="), ",")
		profile := strings.TrimPrefix(rest, "profile=")
		switch name {
		case "rootless":
			return errors.New("is rootless: its containers can't be put into a control group that is measured from outside")
		case "userns":
			return errors.New("remaps users (userns-remap): a sandbox's root would not be the user that its socket is for")
		case "seccomp":
			// Newer daemons call their own profile builtin, older ones default.
			filtered = profile == "default" || profile == "builtin"
		}
	}
	switch {
	case os != "linux":
		return fmt.Errorf("runs containers of %q", os)
	case !filtered:
		return errors.New("does not filter system calls with its own seccomp profile")
	case cgroups != "cgroupfs":
		return fmt.Errorf("manages control groups with %q, which removes them, and what they have counted, with a container: start one with --exec-opt native.cgroupdriver=cgroupfs", cgroups)
	}
	return nil
}

func (c Config) validate() error {
	switch {
	case c.Dir == "":
		return errors.New("docker: no state directory")
	case !keep.ValidInstance(c.Instance):
		return fmt.Errorf("docker: instance %q is not 1 to 40 of [a-z0-9-]", c.Instance)
	case c.Host == "":
		return errors.New("docker: no daemon")
	case c.Guest == "":
		return errors.New("docker: no path of enclave-guest")
	case c.Images == nil:
		return errors.New("docker: no image store")
	}
	return nil
}

// Info says that only the host's own kernel is between a workload and its host.
func (b *Backend) Info() backend.Info {
	return backend.Info{Name: "docker", Isolation: backend.SharedKernel, Starting: 2}
}

// Close lets go of the sandboxes, which go on, unwatched, until another value
// resumes them. If there are none it leaves nothing in the kernel.
func (b *Backend) Close() error {
	b.mu.Lock()
	first := !b.closed
	if first {
		b.closed = true
		close(b.closing)
	}
	b.mu.Unlock()
	b.watchers.Wait()
	if !first {
		return nil
	}
	// Directories that still have a group, of whatever instance, stay.
	b.tree.RemoveParentTree(cgroupParent)
	return b.api.Close()
}
