package server

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/enclave-run/enclave/internal/backend/all"
	"github.com/enclave-run/enclave/internal/image"
	"github.com/enclave-run/enclave/internal/statedir"
)

// Scratch makes a state directory below that of s, or, before there is one, beside
// where it will be. remove destroys the sandboxes that are left in it, on the host
// that hostOf says, and the directory.
func Scratch(ctx context.Context, s *statedir.Dir, hostOf func(*statedir.Dir, *image.Store) all.Host) (own *statedir.Dir, remove func(context.Context) error, err error) {
	above := s.File("tmp")
	if _, err := os.Stat(above); err != nil {
		for above = filepath.Dir(s.Path); ; above = filepath.Dir(above) {
			if _, err := os.Stat(above); err == nil {
				break
			}
		}
	}
	dir, err := os.MkdirTemp(above, "enclave-doctor-")
	if err != nil {
		return nil, nil, statedir.Unwritable(above, err)
	}
	undo := func() error { return os.RemoveAll(dir) }
	defer func() {
		if err != nil {
			err = errors.Join(err, undo())
		}
	}()
	own, err = statedir.Open(dir)
	if err != nil {
		return nil, nil, err
	}
	locked, err := own.Lock(ctx, statedir.ModeCommand)
	if err != nil {
		return nil, nil, err
	}
	remove = func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, StopTime)
		defer cancel()
		defer locked.Unlock()
		return Remove(ctx, locked, hostOf(own, nil))
	}
	return own, remove, nil
}
