package doctor

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/safepath"
	"github.com/enclave-run/enclave/internal/store"
)

func (h *host) lookAtState(ctx context.Context, c Config) {
	h.server = learn(askServer(ctx, c))
	h.dir = learn(lookAtDir(c.State))
}

// lookInRoom makes a room where sandboxes would be, and learns what only writing
// there can tell.
func (h *host) lookInRoom(ctx context.Context, c Config) {
	room, remove, err := c.Scratch(ctx)
	if err != nil {
		h.sync = learn(time.Duration(0), err)
		h.database = learn(database{}, err)
	} else {
		h.sync = learn(syncTime(room.Dir))
		h.database = learn(lookAtDatabase(ctx, filepath.Join(c.State, "db", "enclave.db"), room.Dir, h.server.value.held))
	}
	h.lookAtPrograms(ctx, c, room, err)
	if err != nil {
		return
	}
	if err := remove(context.WithoutCancel(ctx)); err != nil {
		h.sync = learn(time.Duration(0), fmt.Errorf("remove what was made: %w", err))
	}
}

// fsNames are file systems by the number that statfs(2) gives.
var fsNames = map[int64]string{
	unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs", unix.TMPFS_MAGIC: "tmpfs",
	unix.RAMFS_MAGIC: "ramfs", unix.OVERLAYFS_SUPER_MAGIC: "overlay", unix.NFS_SUPER_MAGIC: "nfs", unix.CIFS_SUPER_MAGIC: "cifs",
	unix.SMB2_SUPER_MAGIC: "smb2", unix.V9FS_MAGIC: "9p", unix.FUSE_SUPER_MAGIC: "fuse", unix.CEPH_SUPER_MAGIC: "ceph",
	unix.AFS_SUPER_MAGIC: "afs", unix.F2FS_SUPER_MAGIC: "f2fs", 0x2fc12fc1: "zfs",
}

// lookAtDir looks at the state directory, and for what it does not tell at the
// nearest directory above it that exists.
func lookAtDir(path string) (directory, error) {
	d := directory{path: path}
	info, err := os.Lstat(path)
	switch {
	case err == nil && !info.IsDir():
		return d, fmt.Errorf("%s is not a directory", path)
	case err == nil:
		d.exists, d.mode = true, info.Mode()
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			d.uid = int(st.Uid)
		}
	case !errors.Is(err, fs.ErrNotExist):
		return d, err
	}
	there := ""
	for p := path; ; p = filepath.Dir(p) {
		_, err := os.Stat(p)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return d, err
		}
		if err == nil {
			there = p
			break
		}
	}
	if _, err := safepath.Resolve(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.trust = err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(there, &st); err != nil {
		return d, err
	}
	if d.fsType = fsNames[int64(st.Type)]; d.fsType == "" {
		d.fsType = fmt.Sprintf("file system %#x", st.Type)
	}
	d.noExec, d.readOnly = st.Flags&unix.ST_NOEXEC != 0, st.Flags&unix.ST_RDONLY != 0
	d.free, d.freeFiles = int64(st.Bavail)*st.Bsize, -1
	if st.Files > 0 {
		d.freeFiles = int64(st.Ffree)
	}
	return d, nil
}

// syncTime writes a little to a file in dir and measures its fsync.
func syncTime(dir string) (time.Duration, error) {
	f, err := os.CreateTemp(dir, "sync-")
	if err != nil {
		return 0, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if _, err := f.Write(make([]byte, 4096)); err != nil {
		return 0, err
	}
	begun := time.Now()
	err = f.Sync()
	return time.Since(begun), err
}

// lookAtDatabase reads the version of the database at path, which must not change:
// by other names of its files, in the directory room, where SQLite may put its own.
func lookAtDatabase(ctx context.Context, path, room string, held bool) (database, error) {
	d := database{held: held}
	if held {
		return d, nil
	}
	name := filepath.Join(room, "enclave.db")
	for _, part := range []string{"", "-wal"} {
		err := os.Link(path+part, name+part)
		if errors.Is(err, fs.ErrNotExist) {
			break // without the first there is none; without the second all is in the first
		}
		if err != nil {
			return d, err
		}
		d.exists = true
	}
	if !d.exists {
		return d, nil
	}
	var err error
	d.have, d.knows, err = store.Version(ctx, name)
	return d, err
}

// askServer asks the server that has the state directory, if there is one.
func askServer(ctx context.Context, c Config) (s server, err error) {
	if s.held, s.pid, s.mode, s.listen, err = c.Holder(); err != nil || !s.held {
		return s, err
	}
	if _, s.alive = get(ctx, c, "/healthz"); s.alive == nil {
		_, s.ready = get(ctx, c, "/readyz")
	}
	if (s.alive != nil || s.ready != nil) && left(ctx, c, s.pid) {
		return server{}, nil
	}
	if s.alive != nil {
		return s, nil
	}
	if s.listen != "" && !loopback(s.listen) {
		s.tls = speaksTLS(ctx, s.listen)
	}
	return s, nil
}

const askTime = 5 * time.Second

// left reports whether the server that is process pid has ended, or does while
// left waits. A background one ends with its last client, at any time, and that
// it then gives no answer is no flaw.
func left(ctx context.Context, c Config, pid int) bool {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		held, now, _, _, err := c.Holder()
		if err != nil {
			return false
		}
		if !held || now != pid {
			return true
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return false
		}
	}
}

// get asks the server over its socket.
func get(ctx context.Context, c Config, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	transport := &http.Transport{
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return c.Dial(ctx) },
		DisableKeepAlives: true,
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := transport.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answers %s: %.200s", path, resp.Status, body)
	}
	return body, nil
}

// speaksTLS reports whether what listens takes a TLS handshake. Whose certificate
// it shows is for its clients to judge.
func speaksTLS(ctx context.Context, address string) bool {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}}
	conn, err := d.DialContext(ctx, "tcp", address)
	if err == nil {
		conn.Close()
		return true
	}
	// A server that wants another client refuses this one in TLS (RFC 8446,
	// section 6).
	var refused *net.OpError
	return errors.As(err, &refused) && refused.Op == "remote error"
}
