package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/statedir"
	"github.com/enclave-run/enclave/internal/store"
)

// A checkpointFile is a file that checkpoints of a log are appended to. What is
// there is never read back but for its end, and never changed: the file may be
// append-only (chattr +a).
type checkpointFile struct {
	f    *os.File
	last []byte // the newest checkpoint when it was opened; nil if there was none
}

// maxTail is how much of the end of a checkpoint file is read: some hundred
// records.
const maxTail = 64 << 10

// openCheckpointFile opens the checkpoint file at path, and makes it if there is
// none. A record that a crash cut off is closed.
func openCheckpointFile(path string) (_ *checkpointFile, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("checkpoint file %s: %w", path, err)
		}
	}()
	_, missing := os.Lstat(path)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("is not a regular file")
	}
	if errors.Is(missing, fs.ErrNotExist) {
		if err := statedir.SyncDir(filepath.Dir(path)); err != nil {
			return nil, err
		}
	}
	from := max(0, info.Size()-maxTail)
	tail, err := io.ReadAll(io.NewSectionReader(f, from, info.Size()-from))
	if err != nil {
		return nil, err
	}
	if from > 0 { // into the middle of a record
		_, tail, _ = bytes.Cut(tail, []byte("\n---\n"))
	}
	c := &checkpointFile{f: f}
	for r, err := range audit.Published(bytes.NewReader(tail)) {
		if err != nil {
			return nil, err
		}
		c.last = r.Note
	}
	if mend := audit.MendPublished(tail); mend != nil {
		if err := c.append(mend); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// publish appends a checkpoint and returns once it is durable.
func (c *checkpointFile) publish(checkpoint []byte) error {
	return c.append(audit.PublishedRecord(checkpoint))
}

func (c *checkpointFile) append(b []byte) error {
	if _, err := c.f.Write(b); err != nil {
		return err
	}
	return c.f.Sync()
}

// OpenStore opens the store of s. If there is to be a checkpoint file, its
// newest checkpoint must be of this log, and each later one is appended to it;
// an error from there ends Store.Sequence. close closes both.
func OpenStore(ctx context.Context, s *statedir.Dir, file string, o store.Options) (_ *store.Store, close func() error, err error) {
	var second *checkpointFile
	if file != "" {
		if second, err = openCheckpointFile(file); err != nil {
			return nil, nil, err
		}
		defer func() {
			if err != nil {
				second.f.Close()
			}
		}()
		o.Publish = second.publish
	}
	if err := keepsItsLog(s); err != nil {
		return nil, nil, err
	}
	st, err := store.Open(ctx, s.Database(), o)
	if err != nil {
		return nil, nil, newerStore(err, s.Path)
	}
	if second == nil {
		return st, st.Close, nil
	}
	if second.last != nil {
		name := "enclave.local/" + s.Instance
		if got, _, _ := strings.Cut(string(second.last), "\n"); got != name {
			err = fmt.Errorf("checkpoint file %s is of the log %s, and this one is %s: name another file", file, got, name)
		} else if err = st.Holds(ctx, second.last); err != nil {
			err = fmt.Errorf("%w: the database in %s is not the one whose checkpoints are in %s. It was replaced by an older copy, or rewritten. Put the right one back; if it is lost, keep the file as evidence and name another one",
				err, s.Path, file)
		}
		if err != nil {
			return nil, nil, errors.Join(err, st.Close())
		}
	}
	return st, func() error { return errors.Join(st.Close(), second.f.Close()) }, nil
}

// keepsItsLog refuses a state directory whose database was lost while the key of
// its log was not: a new log under the old key would look like a fork of it.
func keepsItsLog(s *statedir.Dir) error {
	_, err := os.Lstat(s.File("db", AuditKey))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // nothing was signed yet
	}
	if err == nil {
		_, err = os.Lstat(s.Database())
	}
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s is gone, and the log's key is there: put the database back, or, if it is lost for good, begin anew with another state directory (--state)", s.Database())
	}
	return err
}
