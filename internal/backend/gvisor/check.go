package gvisor

import (
	"context"
	"errors"
	"fmt"

	"github.com/enclave-run/enclave/internal/backend"
)

// Check implements backend.Checker.
func (b *Backend) Check(ctx context.Context, id backend.ID) error {
	s, err := b.resume(id)
	if err != nil {
		return fmt.Errorf("check sandbox %s: %w", id, err)
	}
	s.mu.Lock()
	watched := s.phase == live
	s.mu.Unlock()
	if !watched {
		return nil
	}
	done := make(chan struct{})
	select {
	case s.checks <- done:
	case <-s.settled:
		return nil
	case <-b.closing:
		return errors.New("gvisor backend is closed")
	case <-ctx.Done():
		return fmt.Errorf("check sandbox %s: %w", id, ctx.Err())
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("check sandbox %s: %w", id, ctx.Err())
	}
}
