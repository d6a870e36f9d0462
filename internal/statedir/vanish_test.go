package statedir

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestAStateDirectoryThatGoesIsNoticedAndOneThatStaysIsNot(t *testing.T) {
	for name, vanish := range map[string]func(s *Locked) error{
		"nothing happens":         nil,
		"the database is removed": func(s *Locked) error { return os.Remove(s.File("db", "enclave.db")) },
		"the lock is replaced": func(s *Locked) error {
			return errors.Join(os.Remove(s.File("lock")), os.WriteFile(s.File("lock"), nil, 0o600))
		},
		"the mark is moved":         func(s *Locked) error { return os.Rename(s.File(MarkName), s.File("other")) },
		"the directory is replaced": func(s *Locked) error { return os.Rename(s.Path, s.Path+"-away") },
	} {
		t.Run(name, func(t *testing.T) {
			s, err := state(t).Lock(t.Context(), ModeCommand)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Unlock()
			if err := errors.Join(os.MkdirAll(s.File("db"), 0o700), os.WriteFile(s.File("db", "enclave.db"), nil, 0o600)); err != nil {
				t.Fatal(err)
			}
			synctest.Test(t, func(t *testing.T) {
				ctx, stop := context.WithCancel(t.Context())
				noticed := make(chan error, 1)
				go func() { noticed <- s.Watch(ctx) }()
				time.Sleep(time.Hour)
				synctest.Wait()
				if len(noticed) != 0 {
					t.Fatalf("while nothing happened: %v", <-noticed)
				}
				if vanish != nil {
					if err := vanish(s); err != nil {
						t.Fatal(err)
					}
					time.Sleep(vanishEvery)
					synctest.Wait()
				}
				stop()
				err := <-noticed
				if gone := err != nil && strings.Contains(err.Error(), "is gone from under this server"); gone != (vanish != nil) || err != nil && !gone {
					t.Errorf("it says %v", err)
				}
			})
		})
	}
}
