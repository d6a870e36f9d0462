package kernel

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
)

// Import makes a Kernel of a Debian package that has one, in dir/<digest>, or
// returns the one that is there already. Several processes may call it at once. It
// needs 200 MB in dir for a moment.
func Import(ctx context.Context, dir string, deb io.ReaderAt, size int64) (Kernel, error) {
	if runtime.GOARCH != "amd64" {
		return Kernel{}, fmt.Errorf("microVMs are for amd64 hosts only as yet, and this is %s", runtime.GOARCH)
	}
	if size > maxPackage {
		return Kernel{}, refuse("the package has %d bytes", size)
	}
	unlock, err := lock(dir)
	if err != nil {
		return Kernel{}, err
	}
	defer unlock()
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(deb, 0, size)); err != nil {
		return Kernel{}, fmt.Errorf("read the kernel package: %w", err)
	}
	digest := hex.EncodeToString(sum.Sum(nil))
	if k, err := open(dir, digest); err == nil {
		return k, nil
	}
	tmp := filepath.Join(dir, tmpDir)
	defer os.RemoveAll(tmp)
	p, err := unpack(ctx, tmp, deb, size)
	if err != nil {
		return Kernel{}, err
	}
	p.Layout, p.Digest = layout, digest
	made := filepath.Join(tmp, digest)
	if err := p.write(made); err != nil {
		return Kernel{}, fmt.Errorf("store the guest kernel: %w", err)
	}
	final := filepath.Join(dir, digest)
	// What is there is incomplete, or of another layout.
	if err := errors.Join(os.RemoveAll(final), os.Rename(made, final), syncDir(dir)); err != nil {
		return Kernel{}, fmt.Errorf("store the guest kernel: %w", err)
	}
	return open(dir, digest)
}

// An unpacked is what a package comes to.
type unpacked struct {
	facts
	kernel  []byte
	modules map[string][]byte
}

var (
	isKernelPackage = regexp.MustCompile(`^linux-image-[0-9][0-9a-z.+~-]*$`)
	isVersion       = regexp.MustCompile(`^[0-9][0-9A-Za-z.+~:-]*$`) // deb-version(7); it is shown at terminals
	modulePath      = regexp.MustCompile(`^(usr/)?lib/modules/[^/]+/kernel/.+`)
	builtinPath     = regexp.MustCompile(`^(usr/)?lib/modules/[^/]+/modules\.builtin$`)
)

// unpack reads a package. It writes one file to tmp, whose name it chooses.
func unpack(ctx context.Context, tmp string, deb io.ReaderAt, size int64) (*unpacked, error) {
	all, err := members(deb, size)
	if err != nil {
		return nil, err
	}
	about, err := control(ctx, all)
	if err != nil {
		return nil, err
	}
	p := &unpacked{facts: facts{Package: about["Package"], Version: about["Version"], Arch: about["Architecture"]}}
	if !isKernelPackage.MatchString(p.Package) || len(p.Package) > 128 || len(p.Version) > 128 {
		return nil, refuse("the package is %.100q, which has no kernel: linux-image-VERSION-cloud-amd64 has", p.Package)
	}
	if !isVersion.MatchString(p.Version) {
		return nil, refuse("the package says that its version is %.100q", p.Version)
	}
	if p.Arch != runtime.GOARCH {
		return nil, refuse("the package is for %.100q and this host is %s", p.Arch, runtime.GOARCH)
	}
	// Once to a file: what a module needs is known only when it has been read.
	data, err := os.Create(filepath.Join(tmp, "data.tar"))
	if err != nil {
		return nil, fmt.Errorf("unpack the kernel package: %w", err)
	}
	defer data.Close()
	r, done, err := member(all, "data.tar", maxData)
	if err != nil {
		return nil, err
	}
	defer done()
	if _, err := io.Copy(data, readerFunc(func(b []byte) (int, error) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		return r.Read(b)
	})); err != nil {
		return nil, fmt.Errorf("unpack the kernel package: %w", err)
	}
	i, err := newIndex(ctx, data)
	if err != nil {
		return nil, err
	}
	if i.vmlinuz == nil {
		return nil, refuse("the package has no /boot/vmlinuz")
	}
	if p.kernel, err = vmlinux(i.vmlinuz); err != nil {
		return nil, err
	}
	p.Modules, p.modules, err = resolve(i.module)
	return p, err
}

// An index says where what is of use lies in a package's data.
type index struct {
	data    *os.File
	vmlinuz []byte
	builtin map[string]bool
	modules map[string]located
}

type located struct {
	from, size int64
	suffix     string
}

func newIndex(ctx context.Context, data *os.File) (*index, error) {
	i := &index{data: data, builtin: map[string]bool{}, modules: map[string]located{}}
	if _, err := data.Seek(0, io.SeekStart); err != nil {
		return nil, fmt.Errorf("unpack the kernel package: %w", err)
	}
	err := walk(ctx, data, func(name string, size int64, content io.Reader) (err error) {
		switch {
		case strings.HasPrefix(name, "boot/vmlinuz-"):
			if i.vmlinuz != nil {
				return refuse("the package has two kernels")
			}
			i.vmlinuz, err = readAll(content, size, maxVmlinuz, "the kernel")
		case builtinPath.MatchString(name):
			var b []byte
			b, err = readAll(content, size, maxControl, "the list of what is built in")
			for line := range strings.Lines(string(b)) {
				if m, _, ok := moduleName(path.Base(strings.TrimSpace(line))); ok {
					i.builtin[m] = true
				}
			}
		case modulePath.MatchString(name):
			m, suffix, ok := moduleName(path.Base(name))
			if !ok {
				return nil
			}
			if _, twice := i.modules[m]; twice {
				return refuse("the package has the module %.100q twice", m)
			}
			// The reader of the archive has read its header and nothing more: it
			// takes whole blocks of the file.
			at, serr := data.Seek(0, io.SeekCurrent)
			i.modules[m], err = located{at, size, suffix}, serr
		}
		return err
	})
	return i, err
}

// module returns a module, decompressed, or nil if it is part of the kernel.
func (i *index) module(name string) ([]byte, error) {
	l, ok := i.modules[name]
	switch {
	case !ok && i.builtin[name]:
		return nil, nil
	case !ok:
		return nil, refuse("the kernel has no module %.100q, which the guest needs: take linux-image-VERSION-cloud-amd64, 6.1 or later", name)
	case l.size > maxModule:
		return nil, refuse("module %.100q has %d bytes", name, l.size)
	}
	r, done, err := decompress(io.NewSectionReader(i.data, l.from, l.size), l.suffix, maxModule, "module "+name)
	if err != nil {
		return nil, err
	}
	defer done()
	var b bytes.Buffer
	if _, err := io.Copy(&b, r); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// write writes the kernel's files to dir, the facts about them last.
func (p *unpacked) write(dir string) error {
	if err := os.MkdirAll(filepath.Join(dir, modulesDir), 0o755); err != nil {
		return err
	}
	p.Files = map[string]string{}
	put := func(name string, b []byte) error {
		sum := sha256.Sum256(b)
		p.Files[name] = hex.EncodeToString(sum[:])
		return writeFile(filepath.Join(dir, name), b)
	}
	if err := put(vmlinuxFile, p.kernel); err != nil {
		return err
	}
	for name, b := range p.modules {
		if err := put(filepath.Join(modulesDir, name+".ko"), b); err != nil {
			return err
		}
	}
	b, err := json.MarshalIndent(p.facts, "", "  ")
	if err != nil {
		return err
	}
	return errors.Join(writeFile(filepath.Join(dir, factsFile), b), syncDir(filepath.Join(dir, modulesDir)), syncDir(dir))
}

func writeFile(name string, b []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
