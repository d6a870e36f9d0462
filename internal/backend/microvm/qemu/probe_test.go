package qemu

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/enclave-run/enclave/internal/testenv"
)

func TestProbeBootsAGuestOrSaysWhyNot(t *testing.T) {
	k := testKernel(t)
	dir := t.TempDir()
	p, err := Look(t.Context(), dir, "", k)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", p)
	if p.KVM == (p.Why != "") {
		t.Errorf("KVM is %v because of %q", p.KVM, p.Why)
	}
	if p.Path == "" || !strings.Contains(p.Version, ".") {
		t.Errorf("it found %q, version %q", p.Path, p.Version)
	}
}

// script is a program in the place of QEMU.
func script(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "qemu-system-x86_64")
	if err := os.WriteFile(name, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return name
}

func emptyFile(t *testing.T) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "vmlinux")
	if err := os.WriteFile(name, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestQEMUThatIsNoneIsRefusedInWords(t *testing.T) {
	for name, tc := range map[string]struct{ script, want string }{
		"one that exits at once": {"echo broken hinge >&2; exit 3", "does not work: exit status 3: broken hinge"},
		"one that is another":    {"echo 'GNU bash, version 5'", `does not say that it is QEMU, but "GNU bash, version 5"`},
		"one that is too old":    {"echo 'QEMU emulator version 6.2.0 (Debian)'", "is QEMU 6.2.0, which is too old: 7.0 or later is needed"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Look(t.Context(), t.TempDir(), script(t, tc.script), emptyFile(t))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %s", err, tc.want)
			}
		})
	}
	if _, err := Look(t.Context(), t.TempDir(), "/nowhere/qemu", emptyFile(t)); err == nil || !strings.Contains(err.Error(), "ENCLAVE_QEMU") || !strings.Contains(err.Error(), "stat /nowhere/qemu: no such file or directory") {
		t.Errorf("for none: %v", err)
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := Look(t.Context(), t.TempDir(), "", emptyFile(t)); err == nil || !strings.Contains(err.Error(), "apt-get install qemu-system-x86") {
		t.Errorf("for none in PATH: %v", err)
	}
}

// counted is a QEMU that boots, and counts how often it was started.
const counted = `echo x >> "$(dirname "$0")/starts"
case "$1" in --version) echo "QEMU emulator version 9.1.2";; *) %s;; esac`

func starts(t *testing.T, qemu string) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(filepath.Dir(qemu), "starts"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(b), "x")
}

func TestProbeIsRememberedUntilSomethingChanges(t *testing.T) {
	if _, err := os.Stat(kvmDevice); err != nil {
		t.Skip("needs /dev/kvm")
	}
	testenv.Need(t, "root")
	dir, k := t.TempDir(), emptyFile(t)
	q := script(t, strings.Replace(counted, "%s", "echo 'Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)'", 1))
	look := func() Probe {
		t.Helper()
		p, err := Look(t.Context(), dir, q, k)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	first := look()
	if !first.KVM || first.Why != "" || first.Version != "9.1.2" {
		t.Errorf("a QEMU that boots is %+v", first)
	}
	if again := look(); again != first || starts(t, q) != 2 {
		t.Errorf("again: %+v after %d starts", again, starts(t, q))
	}
	if err := os.WriteFile(k, []byte("another"), 0o644); err != nil {
		t.Fatal(err)
	}
	if look(); starts(t, q) != 4 {
		t.Errorf("with another kernel: %d starts", starts(t, q))
	}
	file := filepath.Join(dir, probeFile)
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		t.Fatal(err)
	}
	old := strings.ReplaceAll(string(b), strings.TrimSpace(string(boot)), "an-earlier-boot")
	for name, text := range map[string]string{"of an earlier boot": old, "cut off": string(b[:20]), "with an unknown field": `{"More":1,` + string(b[1:])} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		before := starts(t, q)
		if look(); starts(t, q) != before+2 {
			t.Errorf("an answer %s was believed", name)
		}
	}
}

func TestKVMThatBootsNothingIsSaid(t *testing.T) {
	if _, err := os.Stat(kvmDevice); err != nil {
		t.Skip("needs /dev/kvm")
	}
	testenv.Need(t, "root")
	for name, tc := range map[string]struct{ script, want string }{
		"one that hangs":            {"exec sleep 100", "/dev/kvm opens but boots no guest in 1s"},
		"one that is refused":       {"echo 'qemu: failed to set MSR 0x10a' >&2; exit 1", "/dev/kvm opens but boots no guest: qemu: failed to set MSR 0x10a"},
		"a guest that panics early": {"echo 'Kernel panic - not syncing: no memory'", "/dev/kvm opens but boots no guest: Kernel panic - not syncing: no memory"},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := Look(t.Context(), t.TempDir(), script(t, strings.Replace(counted, "%s", tc.script, 1)), emptyFile(t))
			if err != nil || p.KVM || p.Why != tc.want {
				t.Errorf("got %+v, %v; want %s", p, err, tc.want)
			}
		})
	}
}

func TestProbeEndsWithItsContext(t *testing.T) {
	if _, err := os.Stat(kvmDevice); err != nil {
		t.Skip("needs /dev/kvm")
	}
	testenv.Need(t, "root")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	dir := t.TempDir()
	if p, err := Look(ctx, dir, script(t, strings.Replace(counted, "%s", "exec sleep 100", 1)), emptyFile(t)); err == nil {
		t.Errorf("got %+v", p)
	}
	if _, err := os.Stat(filepath.Join(dir, probeFile)); err == nil {
		t.Error("what was not seen is remembered")
	}
}
