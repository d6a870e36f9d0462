package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/enclave-run/enclave/internal/store"
)

// vanishEvery is how often a server looks whether its state directory is still
// the one that it opened. Until it looks, what it acknowledges is in files that
// have no name any more.
const vanishEvery = time.Second

// vanished are the files without which nothing that a server writes is found by
// the next one.
var vanished = [][]string{{markName}, {"lock"}, {"db", databaseFile}}

// watch returns an error once a file of the state directory that the server
// depends on has gone or was replaced, and nil when ctx ends.
func (l *lockedState) watch(ctx context.Context) error {
	opened := make([]os.FileInfo, len(vanished))
	for i, name := range vanished {
		var err error
		if opened[i], err = os.Stat(l.file(name...)); err != nil {
			return fmt.Errorf("state directory: %w", err)
		}
	}
	tick := time.NewTicker(vanishEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		for i, name := range vanished {
			now, err := os.Stat(l.file(name...))
			if err == nil && os.SameFile(now, opened[i]) {
				continue
			}
			if err == nil {
				err = errors.New("it was replaced")
			}
			return fmt.Errorf("%s is gone from under this server (%w): put the state directory %s back from a copy, or start anew", l.file(name...), err, l.path)
		}
	}
}

// broken says what to do about a database that takes no writes any more.
func broken(err error, state string) error {
	if err == nil || !errors.Is(err, store.ErrBroken) {
		return err
	}
	return fmt.Errorf("%w\nthe disk of %s did not take a write: see that it has space and works, and start the server again; nothing that was acknowledged is lost", err, state)
}
