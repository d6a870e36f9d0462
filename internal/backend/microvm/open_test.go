package microvm

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/microvm/kernel"
	"github.com/enclave-run/enclave/internal/backend/microvm/qemu/qemutest"
	"github.com/enclave-run/enclave/internal/testenv"
)

func config(t *testing.T) Config {
	return Config{
		Dir: t.TempDir(), Instance: "test", Guest: "/bin/true", Kernels: t.TempDir(), Now: time.Now,
		Disk: func(string) (string, error) { return "", errors.New("none") },
		QEMU: &QEMU{Shim: qemutest.Shim()},
	}
}

func TestWhatTheHostLacksIsSaidWithHowToGetIt(t *testing.T) {
	testenv.Need(t, "root")
	program := filepath.Join(t.TempDir(), "firecracker")
	if err := os.WriteFile(program, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	firecrackerLacks := []string{"jailer is missing", "ENCLAVE_JAILER_BIN"}
	if _, err := os.Stat("/dev/kvm"); err != nil {
		firecrackerLacks = []string{"Firecracker needs KVM", "/dev/kvm"}
	}
	for name, tc := range map[string]struct {
		config func(*Config)
		want   []string
	}{
		"no kernel": {func(*Config) {}, []string{"enclave kernel install", "enclave kernel import FILE.deb"}},
		"no QEMU": {func(c *Config) { c.Kernels, c.QEMU.Path = testenv.Kernels(t), "/nonexistent/qemu" },
			[]string{"QEMU is missing", "apt-get install qemu-system-x86", "ENCLAVE_QEMU"}},
		"no jailer": {func(c *Config) {
			c.Kernels, c.QEMU, c.Firecracker = testenv.Kernels(t), nil, &Firecracker{Path: program, Jailer: "/nonexistent/jailer"}
		}, firecrackerLacks},
	} {
		t.Run(name, func(t *testing.T) {
			c := config(t)
			tc.config(&c)
			_, err := New(c)
			if !errors.Is(err, backend.ErrUnavailable) {
				t.Fatalf("the error is %v", err)
			}
			if _, _, aerr := c.Available(t.Context()); aerr == nil || aerr.Error() != err.Error() {
				t.Errorf("asked before, it is %v", aerr)
			}
			for _, w := range tc.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("the error has no %q: %v", w, err)
				}
			}
		})
	}
}

// Root runs them, and asks QEMU what it is before it is in any jail.
func TestProgramsThatOthersCanExchangeAreNotRun(t *testing.T) {
	testenv.Need(t, "root")
	dir := t.TempDir()
	ran := filepath.Join(dir, "ran")
	t.Chdir(dir) // where the zero Kernel has its file
	if err := os.WriteFile(kernel.Kernel{}.Vmlinux(), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	spoils := map[string]func(dir, program string) error{
		"another's":                 func(_, program string) error { return os.Chown(program, 1000, 1000) },
		"that all can write":        func(_, program string) error { return os.Chmod(program, 0o777) },
		"that a group can write":    func(_, program string) error { return os.Chmod(program, 0o775) },
		"in another's directory":    func(dir, _ string) error { return os.Chown(dir, 1000, 1000) },
		"in one that all can write": func(dir, _ string) error { return os.Chmod(dir, 0o777) },
		"behind another's link": func(dir, program string) error {
			return errors.Join(os.Rename(program, program+"-real"), os.Symlink(program+"-real", program), os.Lchown(program, 1000, 1000))
		},
	}
	in := func(t *testing.T, name string) string {
		t.Helper()
		program := filepath.Join(dir, strings.ReplaceAll(t.Name(), "/", "-")+name, "firecracker")
		script := "#!/bin/sh\n: > " + ran + "\n"
		if err := errors.Join(os.Mkdir(filepath.Dir(program), 0o755), os.WriteFile(program, []byte(script), 0o755)); err != nil {
			t.Fatal(err)
		}
		return program
	}
	for name, spoil := range spoils {
		t.Run(name, func(t *testing.T) {
			good, bad := in(t, "good"), in(t, "bad")
			if err := spoil(filepath.Dir(bad), bad); err != nil {
				t.Fatal(err)
			}
			for which, f := range map[string]Firecracker{"FIRECRACKER": {Path: bad, Jailer: good}, "JAILER": {Path: good, Jailer: bad}} {
				_, _, err := f.programs()
				if !errors.Is(err, backend.ErrUnavailable) || !strings.Contains(err.Error(), "ENCLAVE_"+which+"_BIN") || strings.Contains(err.Error(), "no such file") {
					t.Errorf("%s: %v", which, err)
				}
			}
			if _, err := (QEMU{Path: bad}).launcher(t.Context(), dir, kernel.Kernel{}); !errors.Is(err, backend.ErrUnavailable) || !strings.Contains(err.Error(), "QEMU can't be trusted") {
				t.Errorf("QEMU: %v", err)
			}
			if _, err := os.Lstat(ran); err == nil {
				t.Error("it was run")
			}
		})
	}
	// What nobody else can exchange is taken, and QEMU's is asked.
	good := in(t, "")
	if x, j, err := (Firecracker{Path: good, Jailer: good}).programs(); err != nil || x != good || j != good {
		t.Errorf("root's are taken as %s and %s, %v", x, j, err)
	}
	if _, err := (QEMU{Path: good}).launcher(t.Context(), dir, kernel.Kernel{}); err == nil || strings.Contains(err.Error(), "trusted") {
		t.Errorf("root's program that is no QEMU: %v", err)
	}
	if _, err := os.Lstat(ran); err != nil {
		t.Errorf("root's program was not run: %v", err)
	}
}

// TestAConfigWithoutAPartIsRefused takes one part away at a time.
func TestAConfigWithoutAPartIsRefused(t *testing.T) {
	for name, spoil := range map[string]func(*Config){
		"directory": func(c *Config) { c.Dir = "" }, "instance": func(c *Config) { c.Instance = "no such/name" },
		"guest": func(c *Config) { c.Guest = "" }, "kernels": func(c *Config) { c.Kernels = "" }, "disk": func(c *Config) { c.Disk = nil },
		"clock": func(c *Config) { c.Now = nil }, "monitor": func(c *Config) { c.QEMU = nil }, "shim": func(c *Config) { c.QEMU.Shim = nil },
		"choice":        func(c *Config) { c.Firecracker = &Firecracker{"/f", "/j"} },
		"absolute path": func(c *Config) { c.QEMU, c.Firecracker = nil, &Firecracker{"firecracker", "/j"} },
	} {
		c := config(t)
		spoil(&c)
		if _, err := New(c); err == nil || errors.Is(err, backend.ErrUnavailable) {
			t.Errorf("a config without %s: %v", name, err)
		}
	}
}

// TestAStateDirectoryThatOthersCanChangeIsRefused has a link lead to it, and another
// user own it.
func TestAStateDirectoryThatOthersCanChangeIsRefused(t *testing.T) {
	testenv.Need(t, "qemu")
	theirs := filepath.Join(t.TempDir(), "theirs")
	if err := os.Mkdir(theirs, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(theirs, 12345, 12345); err != nil {
		t.Fatal(err)
	}
	c := config(t)
	c.Kernels, c.Dir = testenv.Kernels(t), filepath.Join(theirs, "machines")
	if _, err := New(c); err == nil || !strings.Contains(err.Error(), "belongs to user 12345") {
		t.Errorf("the error is %v", err)
	}
}
