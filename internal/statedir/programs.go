package statedir

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"
)

const (
	guestProgram = "enclave-guest"
	runscProgram = "enclave-runsc"
)

// programs are the paths of the two programs that enclave brings along.
type programs struct{ Guest, Runsc string }

// A Carrier finds the programs: inside this executable, or, in a build without
// them, in the directories.
type Carrier struct {
	Inside fs.FS    // nil if there are none
	Beside []string // directories, in the order they are looked in
}

// NewCarrier returns the carrier of this executable, which has inside, or nil.
func NewCarrier(inside fs.FS) Carrier {
	c := Carrier{Inside: inside}
	if exe, err := os.Executable(); err == nil {
		dir := filepath.Dir(exe)
		c.Beside = []string{dir, filepath.Join(dir, "bin"), filepath.Join(filepath.Dir(dir), "bin")}
	}
	return c
}

// Unpack returns the programs, verified. Those inside the executable are
// written to bin, in a directory named by the digest of the program.
func (c Carrier) Unpack(bin string) (programs, error) {
	var p programs
	var g errgroup.Group
	g.Go(func() (err error) { p.Guest, err = c.program(bin, guestProgram); return })
	g.Go(func() (err error) { p.Runsc, err = c.program(bin, runscProgram); return })
	return p, g.Wait()
}

func (c Carrier) program(bin, name string) (string, error) {
	if c.Inside == nil {
		for _, dir := range c.Beside {
			path := filepath.Join(dir, name)
			if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
				return path, nil
			}
		}
		return "", fmt.Errorf("%s is neither inside this build of enclave nor beside it in %s: build with `make build`", name, strings.Join(c.Beside, ", "))
	}
	packed, err := fs.ReadFile(c.Inside, name+".zst")
	if err != nil {
		return "", fmt.Errorf("carried %s: %w", name, err)
	}
	sum, err := c.sum(name, packed)
	if err != nil {
		return "", fmt.Errorf("carried %s: %w", name, err)
	}
	path := filepath.Join(bin, sum, name)
	switch err := verifyProgram(path, sum); {
	case err == nil:
		return path, nil
	case !errors.Is(err, fs.ErrNotExist):
		// What is there is not what was put there: it is replaced, never run.
		if err := os.RemoveAll(filepath.Dir(path)); err != nil {
			return "", fmt.Errorf("remove damaged %s: %w", path, err)
		}
	}
	if err := writeProgram(bin, name, sum, packed); err != nil {
		return "", fmt.Errorf("unpack %s: %w", name, err)
	}
	if err := verifyProgram(path, sum); err != nil {
		return "", fmt.Errorf("unpack %s: %w", name, err)
	}
	return path, nil
}

// sum returns the digest of the program called name: as listed in SHA256SUMS,
// or, without that, by unpacking it.
func (c Carrier) sum(name string, packed []byte) (string, error) {
	list, err := fs.ReadFile(c.Inside, "SHA256SUMS")
	if errors.Is(err, fs.ErrNotExist) {
		h := sha256.New()
		if err := unzstd(h, packed); err != nil {
			return "", err
		}
		return hex.EncodeToString(h.Sum(nil)), nil
	}
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(list)) {
		if f := strings.Fields(line); len(f) == 2 && strings.TrimPrefix(f[1], "*") == name {
			if raw, err := hex.DecodeString(f[0]); err != nil || len(raw) != sha256.Size {
				return "", fmt.Errorf("SHA256SUMS has %q for it", f[0])
			}
			return strings.ToLower(f[0]), nil
		}
	}
	return "", errors.New("SHA256SUMS does not list it")
}

// verifyProgram returns nil only if path is a regular file of ours, executable,
// writable by its owner alone, with the digest sum.
func verifyProgram(path, sum string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Mode().Perm() != 0o755 {
		return fmt.Errorf("%s has mode %s", path, info.Mode())
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs to another user", path)
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return err
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != sum {
		return fmt.Errorf("%s has digest %s, want %s", path, got, sum)
	}
	return nil
}

// writeProgram puts the program in place as a whole or not at all. If another
// process is doing the same, either's file will do.
func writeProgram(bin, name, sum string, packed []byte) error {
	tmp, err := os.MkdirTemp(bin, ".unpack-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	f, err := os.OpenFile(filepath.Join(tmp, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unzstd(f, packed); err != nil {
		return err
	}
	if err := errors.Join(f.Chmod(0o755), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	if err := os.Rename(tmp, filepath.Join(bin, sum)); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

func unzstd(w io.Writer, packed []byte) error {
	d, err := zstd.NewReader(bytes.NewReader(packed), zstd.WithDecoderConcurrency(1))
	if err != nil {
		return err
	}
	defer d.Close()
	_, err = d.WriteTo(w)
	return err
}
