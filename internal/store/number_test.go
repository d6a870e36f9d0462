package store

import (
	"errors"
	"path/filepath"
	"slices"
	"testing"
)

// No number is given twice, although each store takes many at once and gives
// back what is left of them, whichever of two on one file is closed first.
func TestNumbersAreUniqueAcrossStores(t *testing.T) {
	path := filepath.Join(t.TempDir(), "enclave.db")
	var got []uint64
	take := func(s *Store, n int) {
		for range n {
			number, err := s.NextNumber(t.Context(), "acme")
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, number)
		}
	}
	first, second := open(t, path, Options{}), open(t, path, Options{})
	take(first, 3)
	take(second, numberBlock+3)
	take(first, 3)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	third := open(t, path, Options{})
	take(third, numberBlock)
	take(second, numberBlock)
	if err := errors.Join(second.Close(), third.Close()); err != nil {
		t.Fatal(err)
	}
	take(open(t, path, Options{}), 1)
	last := got[len(got)-1]
	if slices.Sort(got); len(slices.Compact(got)) != 3+numberBlock+3+3+numberBlock+numberBlock+1 || last != got[len(got)-1] {
		t.Errorf("numbers %v, the last %d", got, last)
	}
}

// A closed store gives no number that it has left.
func TestClosedStoreGivesNoNumber(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "enclave.db"), Options{})
	if _, err := s.NextNumber(t.Context(), "acme"); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if n, err := s.NextNumber(t.Context(), "acme"); !errors.Is(err, ErrClosed) {
		t.Errorf("number %d, %v", n, err)
	}
}
