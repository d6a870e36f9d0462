// Package kernel keeps the kernels that machines boot: from a Debian kernel
// package it takes the kernel itself, uncompressed, and the few modules that the
// guest needs, and packs those with the guest program into an initial file system.
//
// A package is hostile until its bytes have been looked at: every size is bounded
// before it is read, nothing is written under a name that the package chose, and
// nothing of it is run on the host. The same package gives the same bytes.
package kernel

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

var (
	// ErrNone says that there is no kernel, and how to get one.
	ErrNone = errors.New(`no guest kernel: "enclave kernel install" fetches Debian's, "enclave kernel import FILE.deb" takes one that you have`)
	// ErrRefused is wrapped by every error about a package that can't be used.
	// Trying again is of no use.
	ErrRefused = errors.New("kernel package refused")
)

func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrRefused, fmt.Sprintf(format, args...))
}

// A Kernel is one that was imported. The zero Kernel is none.
type Kernel struct {
	Digest  string   // of the package: 64 hexadecimal digits
	Package string   // "linux-image-6.1.0-56-cloud-amd64"
	Version string   // of the package: "6.1.192-2"
	Arch    string   // as Debian calls it: "amd64"
	Modules []string // in the order in which they are loaded

	dir string
}

// layout changes with what an imported kernel promises: one of another layout
// is imported again.
const layout = 1

// facts is what lies beside the files of a kernel, and says that they are all there.
type facts struct {
	Layout  int               `json:"layout"`
	Digest  string            `json:"digest"`
	Package string            `json:"package"`
	Version string            `json:"version"`
	Arch    string            `json:"arch"`
	Modules []string          `json:"modules"`
	Files   map[string]string `json:"files"` // name → digest
}

const (
	factsFile   = "facts.json"
	vmlinuxFile = "vmlinux"
	modulesDir  = "modules"
)

// Vmlinux is the path of the kernel: an ELF file with an entry for PVH, which
// is how both Firecracker and QEMU start it.
func (k Kernel) Vmlinux() string { return filepath.Join(k.dir, vmlinuxFile) }

func (k Kernel) module(name string) string { return filepath.Join(k.dir, modulesDir, name+".ko") }

// Newest returns the kernel of the highest version in dir, or ErrNone.
func Newest(dir string) (Kernel, error) {
	all, err := List(dir)
	if err != nil {
		return Kernel{}, err
	}
	if len(all) == 0 {
		return Kernel{}, ErrNone
	}
	return all[len(all)-1], nil
}

// List returns the kernels in dir, the newest last. A directory that does not
// exist has none.
func List(dir string) ([]Kernel, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list guest kernels: %w", err)
	}
	var all []Kernel
	for _, e := range entries {
		if !isDigest.MatchString(e.Name()) {
			continue
		}
		if k, err := open(dir, e.Name()); err == nil {
			all = append(all, k)
		}
	}
	slices.SortFunc(all, func(a, b Kernel) int {
		return cmp.Or(compareVersions(a.Version, b.Version), strings.Compare(a.Digest, b.Digest))
	})
	return all, nil
}

var isDigest = regexp.MustCompile(`^[0-9a-f]{64}$`)

// open returns the kernel with this digest if it is complete.
func open(dir, digest string) (Kernel, error) {
	k := Kernel{Digest: digest, dir: filepath.Join(dir, digest)}
	f, err := k.facts()
	if err != nil {
		return Kernel{}, err
	}
	k.Package, k.Version, k.Arch, k.Modules = f.Package, f.Version, f.Arch, f.Modules
	return k, nil
}

func (k Kernel) facts() (facts, error) {
	var f facts
	b, err := os.ReadFile(filepath.Join(k.dir, factsFile))
	if err != nil {
		return f, fmt.Errorf("read what guest kernel %s is: %w", k.Digest, err)
	}
	if err := json.Unmarshal(b, &f); err != nil {
		return f, fmt.Errorf("read what guest kernel %s is: %w", k.Digest, err)
	}
	if f.Layout != layout || f.Digest != k.Digest {
		return f, fmt.Errorf("guest kernel %s is of another version of enclave: install it again", k.Digest)
	}
	return f, nil
}

// Verify reads every file of the kernel again and compares its digest with the one
// that Import recorded.
func (k Kernel) Verify(ctx context.Context) error {
	f, err := k.facts()
	if err != nil {
		return err
	}
	for name, want := range f.Files {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("verify guest kernel %s: %w", k.Digest, err)
		}
		got, err := fileDigest(filepath.Join(k.dir, name))
		if err != nil {
			return fmt.Errorf("verify guest kernel %s: %w", k.Digest, err)
		}
		if got != want {
			return fmt.Errorf("guest kernel %s is damaged: %s has another digest than when it was imported; remove %s and install it again",
				k.Package, name, k.dir)
		}
	}
	return nil
}

func fileDigest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// compareVersions orders versions as people read them: digits by their number, what
// is between them by its bytes.
func compareVersions(a, b string) int {
	for a != "" && b != "" {
		ta, tb := token(a), token(b)
		a, b = a[len(ta):], b[len(tb):]
		if digit(ta[0]) && digit(tb[0]) {
			na, nb := strings.TrimLeft(ta, "0"), strings.TrimLeft(tb, "0")
			if c := cmp.Or(len(na)-len(nb), strings.Compare(na, nb)); c != 0 {
				return c
			}
		} else if c := strings.Compare(ta, tb); c != 0 {
			return c
		}
	}
	return len(a) - len(b)
}

func digit(c byte) bool { return '0' <= c && c <= '9' }

// token is the longest start of s that is all digits, or all none.
func token(s string) string {
	n := 1
	for n < len(s) && digit(s[n]) == digit(s[0]) {
		n++
	}
	return s[:n]
}

// lock waits until no other process changes dir, which it makes if it is missing,
// and removes what dead ones left.
func lock(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("open the guest kernels: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the guest kernels: %w", err)
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err != unix.EINTR {
			break
		}
	}
	if err == nil {
		err = os.RemoveAll(filepath.Join(dir, tmpDir)) // of the dead: only who has the lock writes there
	}
	if err == nil {
		err = os.Mkdir(filepath.Join(dir, tmpDir), 0o700)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock the guest kernels: %w", err)
	}
	return func() { f.Close() }, nil
}

const tmpDir = "tmp"
