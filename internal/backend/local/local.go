// Package local is what a backend on this host keeps of its sandboxes in a
// directory of its own: records written whole, the guest, the way out, and the
// Registry that leads each sandbox through its life. It refuses to remove what
// somebody has mounted there, to give one id to two sandboxes, and to run a
// sandbox that nobody watches. What a sandbox is made of is each backend's.
//
// A backend is a Driver, which makes sandboxes and removes what it has made, and
// a Registry over it, which the Backend embeds: it has every method of
// backend.Backend and backend.Checker but Info. The order of things is the
// Registry's:
//
//	Listen   Place, Driver.Listen
//	Start    Place, User, facts.json, Make (which writes started.json), Watch
//	Wait     exit.json, or the end of the Watcher
//	Destroy  destroying, the listener, processes of the group, Kill, the end of
//	         the Watcher, Clear, the group, the directory
//
// A start that fails is a Destroy. A control plane that comes back finds in the
// files how far each sandbox has come, and calls Watch for what has a
// started.json and no exit.json. So a Driver keeps nothing in memory that its
// methods can't do without: what Watch, Kill and Clear need is in the directory,
// in the kernel, or asked of a daemon.
//
// What a Watcher shares with every other is package watch's: the Registry hands
// it a watch.Watcher with the group, its CPU time and the marks filled in. The
// Watcher adds itself as the Subject (the Kill and Settle of an embedded *Sandbox
// will do), a channel that says when the sandbox has ended, and counters of its
// own. It closes nothing and settles nothing outside Run.
package local

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/mountinfo"
	"github.com/enclave-run/enclave/internal/safepath"
)

// idLen is the width of a sandbox's id.
const idLen = 20

// validID reports whether id is idLen of [a-z0-9].
func validID(id backend.ID) bool {
	if len(id) != idLen {
		return false
	}
	for _, c := range []byte(id) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}

// ValidInstance reports whether s is 1 to 40 of [a-z0-9-].
func ValidInstance(s string) bool {
	if s == "" || len(s) > 40 {
		return false
	}
	return strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

// Socket opens the socket name in a directory, to which only this user may connect;
// one that is there from before goes. Closing the listener leaves the file.
func Socket(ctx context.Context, in, name string) (net.Listener, error) {
	dir, err := os.Open(in)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	// A socket's address has at most 107 bytes; the state directory may have
	// more.
	path := fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	// The file gets the socket's mode: whoever lives in the directory already finds
	// no moment with another.
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		cerr := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(cerr, err)
	}}
	l, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	// Its address is a path through a descriptor that is closed now.
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	return l, nil
}

// Own gives a socket to one user of the host, who alone may connect to it.
func Own(path string, user int) error {
	return errors.Join(os.Chown(path, user, user), os.Chmod(path, 0o600))
}

// Guest copies the guest program into the state directory, unless the same
// is there, so that each sandbox can link it: one file in the page cache for
// all of them, and an upgrade changes none that runs.
func Guest(dir, path string) (string, error) {
	src, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(src)
	name := filepath.Join(dir, "guest-"+hex.EncodeToString(sum[:12]))
	if old, err := os.ReadFile(name); err == nil && sha256.Sum256(old) == sum {
		return name, nil
	}
	tmp, err := os.CreateTemp(dir, "guest-*.tmp")
	if err != nil {
		return "", err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(src)
	if err := errors.Join(err, tmp.Chmod(0o755), tmp.Close()); err != nil {
		return "", err
	}
	return name, os.Rename(tmp.Name(), name)
}

// Dir makes the directory of a backend and returns its path, without links. Only
// root passes through it, so that a name in it is worth nothing to anybody else:
// names are told by /proc. What a sandbox's own processes need of it they are given
// in their own mounts.
func Dir(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	dir, err := safepath.Resolve(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(path, 0o700); err != nil {
			return "", err
		}
		dir, err = safepath.Resolve(path)
	}
	if err != nil {
		return "", err
	}
	if dir == "/" {
		return "", errors.New("the state directory is the root directory")
	}
	return dir, safepath.Private(dir)
}

// New writes v to a file that must not exist, whole or not at all.
func New(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(b)
	if err := errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	// link fails if the name exists, which rename does not.
	return os.Link(tmp.Name(), path)
}

// Read decodes the record in a file.
func Read(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("read %s: %w", filepath.Base(path), err)
	}
	return nil
}

// removeDir removes a sandbox's directory with what is in it, unless something is
// mounted there: nothing of ours is by then, and removing what another file
// system shows here would remove it there.
func removeDir(dir string) error {
	mounts, err := mountinfo.Table()
	if err != nil {
		return fmt.Errorf("look for mounts in %s: %w", dir, err)
	}
	if at := mountinfo.Below(mounts, dir); len(at) > 0 {
		return fmt.Errorf("%s is mounted by somebody else: unmount it, and what is left of the sandbox will be removed", at[0])
	}
	return os.RemoveAll(dir)
}
