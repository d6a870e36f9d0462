package kernel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// meta is the package of Debian that always depends on the current kernel.
const meta = "linux-image-cloud-amd64"

// ErrNoFetch is wrapped by errors of Fetch about a host that can't fetch.
var ErrNoFetch = errors.New("no kernel package can be fetched here")

const alternative = `fetch linux-image-VERSION-cloud-amd64 elsewhere and use "enclave kernel import FILE.deb"`

// Fetch downloads Debian's current kernel package for virtual machines with apt-get,
// which checks its signature, and returns it open. It is on the file system of dir,
// and has no name there any more: nothing is left of it once it is closed. progress,
// which may be nil, is told what it does.
func Fetch(ctx context.Context, dir string, progress func(string)) (*os.File, error) {
	if progress == nil {
		progress = func(string) {}
	}
	for _, program := range []string{"apt-get", "apt-cache"} {
		if _, err := exec.LookPath(program); err != nil {
			return nil, fmt.Errorf("%w: there is no %s: %s", ErrNoFetch, program, alternative)
		}
	}
	progress("asking apt for the current kernel")
	about, err := run(ctx, "", "apt-cache", "show", "--no-all-versions", meta)
	if err != nil {
		return nil, fmt.Errorf("%w: apt knows no %s: run \"apt-get update\" first, or %s (%w)", ErrNoFetch, meta, alternative, err)
	}
	name, err := dependency(about)
	if err != nil {
		return nil, err
	}
	unlock, err := lock(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	tmp := filepath.Join(dir, tmpDir)
	defer os.RemoveAll(tmp)
	progress("downloading " + name)
	// As root apt drops to a user who can't write here. That this host's apt may be
	// told to install what nobody has signed is not said of the kernel of sandboxes.
	if _, err := run(ctx, tmp, "apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", "-o", "APT::Get::AllowUnauthenticated=false", name); err != nil {
		return nil, fmt.Errorf("%w: download %s: %w; if there is a network, run \"apt-get update\", as Debian may have a newer one, and try again; or %s", ErrNoFetch, name, err, alternative)
	}
	found, err := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if err != nil || len(found) != 1 {
		return nil, fmt.Errorf("%w: apt-get downloaded %d packages, not one", ErrNoFetch, len(found))
	}
	f, err := os.Open(found[0])
	if err != nil {
		return nil, fmt.Errorf("fetch a kernel: %w", err)
	}
	return f, nil
}

var dependsOn = regexp.MustCompile(`(?m)^Depends: (linux-image-[0-9][0-9a-z.+~-]*)`)

// dependency returns the package that the current kernel is in, from what apt-cache
// says about meta.
func dependency(about []byte) (string, error) {
	m := dependsOn.FindSubmatch(about)
	if m == nil {
		return "", fmt.Errorf("%w: apt does not say which kernel %s depends on: %s", ErrNoFetch, meta, alternative)
	}
	return string(m[1]), nil
}

// run runs a program and returns its output. Its error has the first line that it
// complained with.
func run(ctx context.Context, dir, program string, args ...string) ([]byte, error) {
	var out, problem bytes.Buffer
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &out, &problem
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	// A group of its own: who interrupts us at a terminal would interrupt it first,
	// and read that there is no network.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		line, _, _ := strings.Cut(strings.TrimSpace(problem.String()), "\n")
		return nil, fmt.Errorf("%s: %w: %s", program, err, line)
	}
	return out.Bytes(), nil
}
