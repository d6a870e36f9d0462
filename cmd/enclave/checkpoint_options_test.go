package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/testenv"
	"golang.org/x/sys/unix"
)

func TestCheckpointFileMustBeAbsolute(t *testing.T) {
	if err := (&checkpointOptions{File: "log.checkpoints"}).validate(); err == nil {
		t.Error("a file in whichever directory serve is started from")
	}
}

// Events that nobody else would see are not accepted: a full second place ends
// the server.
func TestServerEndsWhenItsCheckpointFileIsFull(t *testing.T) {
	t.Parallel()
	testenv.Need(t, "root")
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "size=16k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	env, _ := simulated(t)
	v := startServe(t, env, "--checkpoint-file", filepath.Join(dir, "checkpoints"))
	junk, err := os.Create(filepath.Join(dir, "junk"))
	if err != nil {
		t.Fatal(err)
	}
	defer junk.Close()
	for err == nil {
		_, err = junk.Write(make([]byte, 512))
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	// The last page of the file may have room for some records more.
	c := &enclave.Client{BaseURL: v.url, APIKey: v.key}
	for {
		h, err := c.Run(t.Context(), enclave.SessionRequest{Code: "1"})
		if err != nil {
			break
		}
		if _, err := c.Export(t.Context(), h.ID()); err != nil { // has it signed
			break
		}
	}
	said := <-v.stderrEnd
	if err := v.cmd.Wait(); err == nil || !strings.Contains(said, "publish checkpoint") || !strings.Contains(said, "no space left") {
		t.Errorf("the server ended with %v: %s", err, said)
	}
	if _, last, _ := strings.Cut(said, "\nenclave: "); strings.Count(last, "no space left") != 1 {
		t.Errorf("why it ended is not said once: %s", last)
	}
}
