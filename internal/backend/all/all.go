// Package all is the one list of kinds of backends: how each is named, asked
// whether it can run on a host, opened, cleared and versioned, and what it needs. A
// new kind is a package of its own and one line here. Nothing else in the product
// asks a backend for its name to decide what to do.
package all

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/image"
)

// A Kind is a kind of backends. Its methods may be called at once.
type Kind struct {
	Name string
	// Part is the directory of its sandboxes in the state directory; "" if it keeps
	// nothing on the host.
	Part string
	// Warning is what must be said whenever it is chosen, if it isolates less than it
	// may seem to.
	Warning string
	// Mend says what to do where it can't run.
	Mend string
	// SeenWith is what its posture was described with that Enclave does not bring
	// along; "" if it brings all.
	SeenWith string
	// Executes is whether code runs in its sandboxes: then it needs root and an image.
	Executes bool
	// Kernel is whether its sandboxes boot a kernel of the state directory's.
	Kernel bool
	// Runsc is whether its sandboxes run in the runtime that Enclave brings along.
	Runsc bool
	// Footprint is what a sandbox takes of the host at most.
	Footprint func(backend.Limits) backend.Footprint

	check     func(Options) error // nil: any will do
	available func(context.Context, Host) (Able, error)
	open      func(context.Context, Host) (Backend, error)
	clear     func(context.Context, Host) error // nil: opened, then each sandbox is destroyed
	versions  func(context.Context, Host) (map[string]string, error)
}

// A Backend is a backend of this host, which lets go of what it has in the kernel
// when it is closed. Its sandboxes stay.
type Backend interface {
	backend.Backend
	Close() error
}

// Able is what a kind can do on a host.
type Able struct {
	Isolation backend.Isolation
	Lacks     string // why it isolates less than elsewhere; "" if it does not
}

// A Host is what backends are opened on. The zero value of a field that a kind does
// not need will do.
type Host struct {
	Dir      string // the state directory
	Instance string // marks the sandboxes of this state directory
	Images   *image.Store
	Kernels  string // the directory of guest kernels
	// Programs returns the paths of the programs that Enclave brings along, verified.
	Programs func() (runsc, guest string, err error)
	Now      func() time.Time
	Options
}

// Options name the programs of others that backends run on.
type Options struct {
	DockerHost  string // address of the Docker daemon
	QEMU        string // QEMU's program; "" is the one on PATH
	Firecracker string // Firecracker's program and its jailer's, or their names on PATH
	Jailer      string
}

// part is the directory of a kind's sandboxes on h.
func (h Host) part(name string) string { return filepath.Join(h.Dir, name) }

// kinds are in the order of preference: what can run and isolates most comes first.
var kinds = []Kind{gvisorKind, firecrackerKind, qemuKind, dockerKind, simulatorKind}

// Kinds returns all kinds, in the order in which they are preferred.
func Kinds() []Kind { return slices.Clone(kinds) }

// Names returns the names of all kinds.
func Names() []string {
	var all []string
	for _, k := range kinds {
		all = append(all, k.Name)
	}
	return all
}

// Named returns the kind of a name. It is an error if there is none.
func Named(name string) (Kind, error) {
	for _, k := range kinds {
		if k.Name == name {
			return k, nil
		}
	}
	return Kind{}, fmt.Errorf("backend %q is not one of %s", name, strings.Join(Names(), ", "))
}

// Modelled is the kind that executes nothing.
func Modelled() Kind { return simulatorKind }

// Default is the kind that is meant if nobody says another.
func Default() Kind { return kinds[0] }

// ErrNotRoot means that a kind needs root, and this process is not it.
var ErrNotRoot = errors.New("needs root")

// Available says what the kind can do on a host, or why it can't run there. It may
// start something to find out, and leaves nothing behind.
func (k Kind) Available(ctx context.Context, h Host) (Able, error) {
	if k.Executes && os.Geteuid() != 0 {
		return Able{}, fmt.Errorf("%s %w, to isolate and to measure", k.Name, ErrNotRoot)
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	return k.available(ctx, h)
}

// askTime bounds the question whether a kind can run: it may boot a machine.
const askTime = 30 * time.Second

// Open opens a backend of the kind. Its sandboxes of before are there again.
func (k Kind) Open(ctx context.Context, h Host) (Backend, error) { return k.open(ctx, h) }

// Versions are those of what isolates, by its name.
func (k Kind) Versions(ctx context.Context, h Host) (map[string]string, error) {
	return k.versions(ctx, h)
}

// Clear destroys every sandbox of the kind on h. It opens nothing where there is no
// sandbox.
func (k Kind) Clear(ctx context.Context, h Host) error {
	if k.Part == "" {
		return nil
	}
	if some, err := anySandbox(h.part(k.Part)); err != nil || !some {
		return err
	}
	if k.clear != nil {
		return k.clear(ctx, h)
	}
	b, err := k.open(ctx, h)
	if err != nil {
		return fmt.Errorf("open %s to destroy its sandboxes: %w", k.Name, err)
	}
	ids, err := b.List(ctx)
	for _, id := range ids {
		err = errors.Join(err, b.Destroy(ctx, id))
	}
	return errors.Join(err, b.Close())
}

// anySandbox reports whether there is a sandbox in a backend's directory: each has
// its own directory there, from before it is made to after it is gone.
func anySandbox(dir string) (bool, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return slices.ContainsFunc(entries, fs.DirEntry.IsDir), err
}

// Image returns the digest of the image called ref, from which sandboxes of the kind
// start. A kind that executes nothing has the same for all.
func (k Kind) Image(images *image.Store, ref string) (string, error) {
	if !k.Executes {
		sum := sha256.Sum256([]byte("enclave: the simulator has no image"))
		if digest, err := images.Resolve(ref); !errors.Is(err, image.ErrNotFound) {
			return digest, err
		}
		return "sha256:" + hex.EncodeToString(sum[:]), nil
	}
	digest, err := images.Resolve(ref)
	if errors.Is(err, image.ErrNotFound) {
		return "", fmt.Errorf("the default image is not there yet: %s", ImageHelp)
	}
	return digest, err
}

// ImageHelp says how an image comes.
const ImageHelp = "`enclave image build` makes it, `enclave image pull REF` and `enclave image import FILE` bring one"

// Check refuses options by which the kind could not work, before anything is opened.
func (k Kind) Check(o Options) error {
	if k.check == nil {
		return nil
	}
	return k.check(o)
}

// An Answer is what a kind can do on a host, or why it can't run there.
type Answer struct {
	Kind Kind
	Able Able
	Err  error
}

// Ask asks every kind that runs code, in the order of preference.
func Ask(ctx context.Context, able func(context.Context, Kind) (Able, error)) []Answer {
	var all []Answer
	for _, k := range kinds {
		if k.Executes {
			a, err := able(ctx, k)
			all = append(all, Answer{k, a, err})
		}
	}
	return all
}

// Best returns the kind that isolates best of those that can run: the first in the
// order of preference. An emulated machine is never chosen: it isolates less than it
// seems to. If it is not the default, instead says why that can't run. If none can run
// it is the default, which says what is missing.
func Best(ctx context.Context, able func(context.Context, Kind) (Able, error)) (k Kind, instead error) {
	for _, k := range kinds {
		if !k.Executes {
			continue
		}
		a, err := able(ctx, k)
		switch {
		case err == nil && a.Isolation != backend.Emulated:
			return k, instead
		case k.Name == Default().Name:
			instead = err
		}
	}
	return Default(), nil
}
