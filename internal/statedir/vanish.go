package statedir

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// vanishEvery is how often a server looks whether its state directory is still
// the one that it opened. Until it looks, what it acknowledges is in files that
// have no name any more.
const vanishEvery = time.Second

// databaseFile is in db.
const databaseFile = "enclave.db"

// vanished are the files without which nothing that a server writes is found by
// the next one.
var vanished = [][]string{{MarkName}, {"lock"}, {"db", databaseFile}}

// Watch returns an error once a file of the state directory that the server
// depends on has gone or was replaced, and nil when ctx ends.
func (l *Locked) Watch(ctx context.Context) error {
	opened := make([]os.FileInfo, len(vanished))
	for i, name := range vanished {
		var err error
		if opened[i], err = os.Stat(l.File(name...)); err != nil {
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
			now, err := os.Stat(l.File(name...))
			if err == nil && os.SameFile(now, opened[i]) {
				continue
			}
			if err == nil {
				err = errors.New("it was replaced")
			}
			return fmt.Errorf("%s is gone from under this server (%w): put the state directory %s back from a copy, or start anew", l.File(name...), err, l.Path)
		}
	}
}
