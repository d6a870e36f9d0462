package server

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/failpoint"
	"github.com/enclave-run/enclave/internal/statedir"
	"github.com/enclave-run/enclave/internal/store"
)

// NextKey is where a key lies that is to take the place of audit.key. Whether it
// has done so, the log says.
const NextKey = "audit.key.next"

// RotateKey gives the log of s a new key and returns its public half.
//
// The new key is durable before anything is signed with it, and the old one is
// there until the log says that it was replaced: whatever stops this, settleKey
// finds the key that the log goes on with.
func RotateKey(ctx context.Context, s *statedir.Locked, file string, now func() time.Time) (_ string, err error) {
	st, closeStore, err := OpenStore(ctx, s.Dir, file, store.Options{Now: now})
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, closeStore()) }()
	old, err := SettleKey(ctx, s.Dir, st)
	if err != nil {
		return "", err
	}
	private, public, err := audit.GenerateKey(rand.Reader, old.Origin())
	if err != nil {
		return "", err
	}
	next, err := audit.NewSigner(private)
	if err != nil {
		return "", err
	}
	if err := errors.Join(statedir.WriteFile(s.File("db", NextKey), private, 0o600), statedir.SyncDir(s.File("db"))); err != nil {
		return "", fmt.Errorf("keep the new audit key: %w", err)
	}
	if err := failpoint.Hit("enclave.rotate.kept"); err != nil {
		return "", err
	}
	if err := st.Rotate(ctx, old, next); err != nil {
		return "", err
	}
	if err := failpoint.Hit("enclave.rotate.logged"); err != nil {
		return "", err
	}
	return public, adoptKey(s.Dir, next)
}

// SettleKey returns the signer of the log of s. If a rotation of its key was
// begun, the log says whether it took place: then it is finished, else the key
// that was made for it is dropped. If there is no key at all, one is made.
func SettleKey(ctx context.Context, s *statedir.Dir, st *store.Store) (*audit.Signer, error) {
	current, err := LoadSigner(s)
	if err != nil {
		return nil, err
	}
	raw, err := statedir.ReadFile(s.File("db", NextKey))
	if errors.Is(err, fs.ErrNotExist) {
		return current, nil
	}
	if err != nil {
		return nil, fmt.Errorf("audit key: %w", err)
	}
	next, err := audit.NewSigner(raw)
	if err != nil {
		return nil, fmt.Errorf("audit key: %w", err)
	}
	note, err := st.Checkpoint(ctx)
	if err == nil {
		if _, err := audit.OpenCheckpoint(note, next.Public()); err == nil {
			return next, adoptKey(s, next)
		}
		_, err = audit.OpenCheckpoint(note, current.Public())
	} else if errors.Is(err, store.ErrNoCheckpoint) {
		err = nil
	}
	if err != nil {
		return nil, fmt.Errorf("neither %s nor %s signed the log: %w", s.File("db", AuditKey), s.File("db", NextKey), err)
	}
	if err := errors.Join(os.Remove(s.File("db", NextKey)), statedir.SyncDir(s.File("db"))); err != nil {
		return nil, fmt.Errorf("drop an audit key that was never used: %w", err)
	}
	return current, nil
}

// adoptKey puts the next key, which signs the log already, in the place of the
// old one, and destroys that: its bytes are overwritten once its name is gone.
// What a disk or file system keeps of overwritten bytes is beyond this.
func adoptKey(s *statedir.Dir, next *audit.Signer) error {
	if err := errors.Join(statedir.WriteFile(s.File("audit.vkey"), []byte(next.Public()+"\n"), 0o644), statedir.SyncDir(s.Path)); err != nil {
		return fmt.Errorf("adopt the new audit key: %w", err)
	}
	if err := failpoint.Hit("enclave.rotate.announced"); err != nil {
		return err
	}
	old, err := os.OpenFile(s.File("db", AuditKey), os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("adopt the new audit key: %w", err)
	}
	defer old.Close()
	if err := errors.Join(os.Rename(s.File("db", NextKey), s.File("db", AuditKey)), statedir.SyncDir(s.File("db"))); err != nil {
		return fmt.Errorf("adopt the new audit key: %w", err)
	}
	if err := failpoint.Hit("enclave.rotate.adopted"); err != nil {
		return err
	}
	info, err := old.Stat()
	if err == nil {
		_, err = io.CopyN(old, zeros{}, info.Size())
	}
	if err := errors.Join(err, old.Sync()); err != nil {
		return fmt.Errorf("overwrite the old audit key: %w", err)
	}
	return nil
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }
