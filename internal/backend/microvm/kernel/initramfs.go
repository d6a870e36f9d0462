package kernel

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// initramfsLayout is part of the name of what Initramfs makes: it changes with
// what is in it.
const initramfsLayout = "enclave initramfs 2"

// Initramfs returns the path of the file system that a machine starts from: the
// guest program, as /init, and the kernel's modules. It is made once in dir for each
// pair of them and named by their digests; the same pair gives the same bytes.
// It reads the guest program in full, so call it once and not for each machine.
func (k Kernel) Initramfs(dir, guest string) (string, error) {
	digest, err := fileDigest(guest)
	if err != nil {
		return "", fmt.Errorf("read the guest program: %w", err)
	}
	sum := sha256.Sum256([]byte(initramfsLayout + "\n" + k.Digest + "\n" + digest + "\n"))
	file := filepath.Join(dir, hex.EncodeToString(sum[:])+".cpio")
	if _, err := os.Stat(file); err == nil {
		return file, nil
	}
	unlock, err := lock(dir)
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(file); err == nil {
		return file, nil
	}
	f, err := os.CreateTemp(filepath.Join(dir, tmpDir), "initramfs-")
	if err != nil {
		return "", fmt.Errorf("pack the guest: %w", err)
	}
	defer f.Close()
	w := bufio.NewWriterSize(f, 1<<20)
	if err := k.pack(w, guest, digest); err != nil {
		return "", fmt.Errorf("pack the guest: %w", err)
	}
	// It exists under its name only when it is whole.
	if err := errors.Join(w.Flush(), f.Chmod(0o644), f.Sync(), f.Close(), os.Rename(f.Name(), file), syncDir(dir)); err != nil {
		return "", fmt.Errorf("pack the guest: %w", err)
	}
	return file, nil
}

// The places of the initial file system that the guest knows: cmd/enclave-guest.
const (
	guestFile = ".enclave/enclave-guest"
	modFolder = "modules"
)

// pack writes the initial file system. The guest program must have the digest that
// the file is named by.
func (k Kernel) pack(w io.Writer, guest, digest string) error {
	c := &cpio{w: w}
	for _, dir := range []string{".enclave", "dev", "proc", "sys", modFolder, "machine", "machine/root", "machine/cgroup", "machine/disk"} {
		c.entry(dir, isDir|0o755, nil)
	}
	// The kernel opens the first for the guest's own messages, the Go runtime the
	// second if there is no first.
	c.device("dev/console", 0o600, 5, 1)
	c.device("dev/null", 0o666, 1, 3)
	for i, name := range k.Modules {
		b, err := os.ReadFile(k.module(name))
		if err != nil {
			return err
		}
		c.entry(fmt.Sprintf("%s/%02d-%s.ko", modFolder, i, name), isFile|0o400, unsigned(b))
	}
	b, err := os.ReadFile(guest)
	if err != nil {
		return err
	}
	if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != digest {
		return errors.New("the guest program was changed meanwhile")
	}
	c.entry(guestFile, isFile|0o555, b)
	c.entry("init", isLink|0o777, []byte(guestFile))
	return c.close()
}

// A cpio writes an archive in the form that the kernel unpacks, "newc": see
// Documentation/driver-api/early-userspace/buffer-format.rst. Everything belongs to
// root and is as old as the epoch, so that nothing depends on when or where it was
// written. Errors show themselves at close.
type cpio struct {
	w   io.Writer
	ino uint32
	err error
}

const (
	isFile = 0o100000
	isDir  = 0o040000
	isLink = 0o120000
	isChar = 0o020000
)

func (c *cpio) entry(name string, mode uint32, content []byte) { c.write(name, mode, 0, 0, content) }

func (c *cpio) device(name string, mode, major, minor uint32) {
	c.write(name, isChar|mode, major, minor, nil)
}

func (c *cpio) write(name string, mode, major, minor uint32, content []byte) {
	c.ino++
	links := uint32(1)
	if mode&0o170000 == isDir {
		links = 2
	}
	const noChecksum = 0
	header := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		c.ino, mode, 0, 0, links, 0, len(content), 0, 0, major, minor, len(name)+1, noChecksum, name)
	c.put([]byte(header))
	c.put(content)
}

// put writes b and fills up to a multiple of four bytes.
func (c *cpio) put(b []byte) {
	for _, part := range [][]byte{b, make([]byte, -len(b)&3)} {
		if c.err == nil {
			_, c.err = c.w.Write(part)
		}
	}
}

func (c *cpio) close() error {
	c.ino = 0
	c.write("TRAILER!!!", 0, 0, 0, nil)
	return c.err
}
