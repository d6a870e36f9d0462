package qemu

import (
	"testing"
)

func TestGuestThatEndsItselfEndsTheVMMWell(t *testing.T) {
	v := serve(t, vmFiles(t))
	v.configure(t)
	if err := v.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if said := v.ended(t); v.err != nil {
		t.Errorf("the VMM ended with %v: %s", v.err, said)
	}
}
