package statedir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"github.com/enclave-run/enclave/internal/failpoint"
)

// maxSocketPath is what fits into sun_path with its terminating NUL (unix(7)).
const maxSocketPath = 107

// shortPath calls f with a path of at most maxSocketPath bytes that leads to
// path. A state directory may lie deeper than a socket's address is long; then
// the way is by an open directory, which /proc/self/fd names.
func shortPath(path string, f func(short string) error) error {
	if len(path) <= maxSocketPath {
		return f(path)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return f(fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)))
}

// Dial connects to the control plane that listens on path.
func Dial(ctx context.Context, path string) (c net.Conn, err error) {
	err = shortPath(path, func(short string) error {
		var d net.Dialer
		c, err = d.DialContext(ctx, "unix", short)
		return err
	})
	return c, err
}

// Listen listens on path, for root alone. The caller holds the lock of
// the state directory, so that what is at path is nobody's any more.
func Listen(path string) (*net.UnixListener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove old socket: %w", err)
	}
	var l *net.UnixListener
	err := shortPath(path, func(short string) (err error) {
		if l, err = net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"}); err != nil {
			return err
		}
		// The directory is 0700, so that nobody gets in before this.
		return os.Chmod(short, 0o600)
	})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	// A short path may be another file's by the time the listener is closed.
	l.SetUnlinkOnClose(false)
	if err := failpoint.Hit("serve.socket.listening"); err != nil {
		l.Close()
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return l, nil
}
