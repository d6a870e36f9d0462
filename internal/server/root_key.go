package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/enclave-run/enclave/internal/auth"
	"github.com/enclave-run/enclave/internal/store"
	"golang.org/x/sys/unix"
)

// RootKey makes the first key of a store, and none where there are keys: then
// plaintext is "". It is also written to a new file, if one is named.
func RootKey(ctx context.Context, st *store.Store, now time.Time, file string) (id, plaintext string, err error) {
	keys, err := st.Keys(ctx, auth.Local().Org)
	if err != nil || len(keys) > 0 {
		return "", "", err
	}
	k, plaintext, err := auth.Generate(now, auth.Local().Org, "root", auth.Owner)
	if err != nil {
		return "", "", err
	}
	if file != "" {
		// Written first: a key that opens nothing can be removed, one that nobody
		// knows is of no use.
		if err := writeRootKey(file, plaintext); err != nil {
			return "", "", err
		}
	}
	if err := st.SaveKey(ctx, k); err != nil {
		return "", "", errors.Join(err, removeIf(file))
	}
	return k.ID, plaintext, nil
}

// writeRootKey writes a new file for root alone.
func writeRootKey(path, plaintext string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("--root-key-file %s is there already: remove it, or name another", path)
	}
	if err != nil {
		return fmt.Errorf("--root-key-file: %w", err)
	}
	_, err = f.WriteString(plaintext + "\n")
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(fmt.Errorf("--root-key-file: %w", err), removeIf(path))
	}
	return nil
}

// removeIf removes the file, if one is named.
func removeIf(path string) error {
	if path == "" {
		return nil
	}
	return os.Remove(path)
}
