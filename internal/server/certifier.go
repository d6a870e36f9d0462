package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/statedir"
	"github.com/enclave-run/enclave/internal/store"
)

// Certifier returns the signer of the log of s, beside a server that may be
// running. If there is no log yet, one is begun.
func Certifier(ctx context.Context, s *statedir.Dir, now func() time.Time) (*audit.Signer, error) {
	if _, err := os.Lstat(s.File("db", NextKey)); !errors.Is(err, fs.ErrNotExist) {
		return nil, errors.Join(fmt.Errorf("a rotation of the log's key in %s is not finished: the next `enclave run` finishes it", s.Path), err)
	}
	if _, err := os.Lstat(s.File("db", AuditKey)); err == nil {
		return LoadSigner(s)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, statedir.Unwritable(s.Path, err)
	}
	wait, cancel := context.WithTimeout(ctx, 3*LeaseGrace)
	defer cancel()
	locked, err := s.Lock(wait, statedir.ModeCommand)
	if err != nil {
		return nil, err
	}
	defer locked.Unlock()
	st, closeStore, err := OpenStore(ctx, s, "", store.Options{Now: now})
	if err != nil {
		return nil, err
	}
	signer, err := SettleKey(ctx, s, st)
	return signer, errors.Join(err, closeStore())
}
