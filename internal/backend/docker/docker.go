// Package docker is a backend whose sandboxes are containers of a Docker daemon
// on this host. They share the host's kernel: it is a convenience of development
// and not a security boundary, and says so. It refuses a daemon whose containers
// it could not confine or count, and it gives a container no network: the only
// way out is the socket that Listen opens.
//
// Anyone who may talk to a Docker daemon is root on its host. It never touches a
// container without this instance's labels.
package docker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
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
	"github.com/enclave-run/enclave/internal/safepath"
)

// DefaultHost is where a daemon listens unless it was told otherwise.
const DefaultHost = "unix:///var/run/docker.sock"

// Config is what a Backend needs. Every field but Late is required.
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

	// Late has every look at a sandbox's counters come so much later. Only tests
	// set it.
	Late time.Duration
}

const (
	cgroupParent = "enclave-docker"
	tunDevice    = "/dev/net/tun"
)

// Labels of a container of ours, by which it is found.
const (
	markLabel    = "run.enclave.mark" // keep.Mark
	sandboxLabel = "run.enclave.sandbox"
)

// A Backend is a backend.Backend on Docker. Its state is in its directory, in
// the daemon and in the kernel: another value on the same Config goes on with its
// sandboxes.
type Backend struct{ *keep.Registry }

// A driver is what is Docker's own of a Backend.
type driver struct {
	dir    string
	mark   string // of everything outside the directory
	host   string
	guest  string
	images *image.Store
	api    *client.Client
	load   sync.Mutex // held while an image is brought to the daemon
}

var (
	_ backend.Backend = (*Backend)(nil)
	_ backend.Checker = (*Backend)(nil)
	_ backend.Sizer   = (*Backend)(nil)
	_ keep.Driver     = (*driver)(nil)
)

// User implements keep.Driver. RLIMIT_NPROC counts by user too, which is why no
// sandbox here has one.
func (d *driver) User(*keep.Sandbox) (uint32, error) { return keep.User(d.dir) }

// askTime bounds a question to the daemon, which may hang.
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
	r, err := keep.Open(ctx, keep.Config{
		Kind: "docker", Dir: dir, Instance: c.Instance, Tree: tree, Groups: cgroupParent, Late: c.Late,
		Driver: &driver{dir: dir, mark: keep.Mark(c.Instance, dir), host: c.Host, guest: guest, images: c.Images, api: api},
	})
	if err != nil {
		return nil, err
	}
	return &Backend{r}, nil
}

// Dial connects to the daemon at host and makes sure that it can run sandboxes.
// What it lacks is an error that wraps backend.ErrUnavailable.
func Dial(ctx context.Context, host string) (*client.Client, error) {
	path, ok := strings.CutPrefix(host, "unix://")
	if !ok || !filepath.IsAbs(path) {
		return nil, fmt.Errorf("%w: the Docker daemon at %q is not a socket of this host, unix:///path", backend.ErrUnavailable, host)
	}
	// Whoever can put a socket there can be the daemon, now or when it is started again.
	real, err := safepath.Socket(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, silent(host, err)
	case err != nil:
		return nil, fmt.Errorf("%w: the Docker daemon at %s can't be trusted: %w", backend.ErrUnavailable, host, err)
	}
	api, err := client.New(client.WithHost("unix://" + real))
	if err != nil {
		return nil, fmt.Errorf("%w: docker: %w", backend.ErrUnavailable, err)
	}
	info, err := api.Info(ctx, client.InfoOptions{})
	if err != nil {
		return nil, errors.Join(silent(host, err), api.Close())
	}
	if err := suits(info.Info.OSType, info.Info.CgroupDriver, info.Info.SecurityOptions); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: the Docker daemon at %s %w", backend.ErrUnavailable, host, err), api.Close())
	}
	if err := tunnels(tunDevice); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %w", backend.ErrUnavailable, err), api.Close())
	}
	return api, nil
}

func silent(host string, err error) error {
	return fmt.Errorf("%w: no Docker daemon answers at %s: start it (apt-get install docker.io), or name its socket with DOCKER_HOST: %w", backend.ErrUnavailable, host, err)
}

// tunnels says why no container can have the host's TUN device, whose path is
// device: without it none has a network.
func tunnels(device string) error {
	switch info, err := os.Stat(device); {
	case err != nil:
		return fmt.Errorf("this host has no TUN device, which is a container's network: modprobe tun: %w", err)
	case info.Mode()&os.ModeCharDevice == 0:
		return fmt.Errorf("%s is not a device: remove it, and modprobe tun", device)
	}
	return nil
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

// Footprint says what a container takes of the host at most.
func (b *Backend) Footprint(l backend.Limits) backend.Footprint { return Footprint(l) }

// Find returns the sandboxes that have a container. Without the daemon's answer
// nothing is known.
func (d *driver) Find(ctx context.Context) ([]backend.ID, error) {
	ask, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	containers, err := d.api.ContainerList(ask, client.ContainerListOptions{
		All: true, Filters: make(client.Filters).Add("label", markLabel+"="+d.mark),
	})
	if err != nil {
		return nil, fmt.Errorf("ask the Docker daemon: %w", err)
	}
	var ids []backend.ID
	for _, c := range containers.Items {
		ids = append(ids, backend.ID(c.Labels[sandboxLabel]))
	}
	return ids, nil
}

// Close closes the connection to the daemon.
func (d *driver) Close() error { return d.api.Close() }
