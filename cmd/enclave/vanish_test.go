package main

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
	for name, vanish := range map[string]func(s *lockedState) error{
		"nothing happens":         nil,
		"the database is removed": func(s *lockedState) error { return os.Remove(s.file("db", "enclave.db")) },
		"the lock is replaced": func(s *lockedState) error {
			return errors.Join(os.Remove(s.file("lock")), os.WriteFile(s.file("lock"), nil, 0o600))
		},
		"the mark is moved":         func(s *lockedState) error { return os.Rename(s.file(markName), s.file("other")) },
		"the directory is replaced": func(s *lockedState) error { return os.Rename(s.path, s.path+"-away") },
	} {
		t.Run(name, func(t *testing.T) {
			s, err := state(t).lock(t.Context(), modeCommand)
			if err != nil {
				t.Fatal(err)
			}
			defer s.unlock()
			if err := errors.Join(os.MkdirAll(s.file("db"), 0o700), os.WriteFile(s.file("db", "enclave.db"), nil, 0o600)); err != nil {
				t.Fatal(err)
			}
			synctest.Test(t, func(t *testing.T) {
				ctx, stop := context.WithCancel(t.Context())
				noticed := make(chan error, 1)
				go func() { noticed <- s.watch(ctx) }()
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
