package main

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
	"github.com/spf13/cobra"
)

// nextKey is where a key lies that is to take the place of audit.key. Whether it
// has done so, the log says.
const nextKey = "audit.key.next"

func (p *program) auditRotateKey() *cobra.Command {
	c := &cobra.Command{
		Use:   "rotate-key",
		Short: "Have a new key sign this host's log, and destroy the old one",
		Long: `Rotate-key makes a new key for the log of this host, writes into the log an event
that both keys sign, and destroys the old key. No server may be running.

Who pinned the old public key goes on verifying with it: an exported record has
the rotations with it. An interrupted rotation is finished, or undone, by the
next command that opens the log.`,
		Example: "  sudo enclave audit rotate-key > log.vkey",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if p.opts.remote() {
				return errors.New("the key of a remote log is rotated on its machine: unset ENCLAVE_BASE_URL")
			}
			if err := p.opts.Serve.Checkpoint.validate(); err != nil {
				return err
			}
			s, err := statedir.Find(p.opts.State)
			if err != nil {
				return err
			}
			if _, err := publicKey(s); err != nil {
				return err
			}
			wait, cancel := context.WithTimeout(cmd.Context(), 3*leaseGrace)
			defer cancel()
			locked, err := s.Lock(wait, statedir.ModeCommand)
			if err != nil {
				return err
			}
			defer locked.Unlock()
			key, err := rotateKey(cmd.Context(), locked, p.opts.Serve.Checkpoint.File, p.now)
			if err != nil {
				return err
			}
			fmt.Fprintln(p.err, "the old key is destroyed; the new public key is:")
			_, err = fmt.Fprintln(p.out, key)
			return err
		},
	}
	p.opts.Serve.Checkpoint.flags(c)
	return c
}

// rotateKey gives the log of s a new key and returns its public half.
//
// The new key is durable before anything is signed with it, and the old one is
// there until the log says that it was replaced: whatever stops this, settleKey
// finds the key that the log goes on with.
func rotateKey(ctx context.Context, s *statedir.Locked, file string, now func() time.Time) (_ string, err error) {
	st, closeStore, err := openStore(ctx, s.Dir, file, store.Options{Now: now})
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, closeStore()) }()
	old, err := settleKey(ctx, s.Dir, st)
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
	if err := errors.Join(statedir.WriteFile(s.File("db", nextKey), private, 0o600), statedir.SyncDir(s.File("db"))); err != nil {
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

// settleKey returns the signer of the log of s. If a rotation of its key was
// begun, the log says whether it took place: then it is finished, else the key
// that was made for it is dropped. If there is no key at all, one is made.
func settleKey(ctx context.Context, s *statedir.Dir, st *store.Store) (*audit.Signer, error) {
	current, err := loadSigner(s)
	if err != nil {
		return nil, err
	}
	raw, err := statedir.ReadFile(s.File("db", nextKey))
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
		return nil, fmt.Errorf("neither %s nor %s signed the log: %w", s.File("db", auditKey), s.File("db", nextKey), err)
	}
	if err := errors.Join(os.Remove(s.File("db", nextKey)), statedir.SyncDir(s.File("db"))); err != nil {
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
	old, err := os.OpenFile(s.File("db", auditKey), os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("adopt the new audit key: %w", err)
	}
	defer old.Close()
	if err := errors.Join(os.Rename(s.File("db", nextKey), s.File("db", auditKey)), statedir.SyncDir(s.File("db"))); err != nil {
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
