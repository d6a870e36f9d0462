package qemu

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/backend/microvm/firecracker"
)

func TestGuestThatEndsItselfEndsTheVMMWell(t *testing.T) {
	v := serve(t, vmFiles(t))
	v.configure(t)
	if err := v.PutSerial(t.Context(), firecracker.Serial{SerialOutPath: "/serial"}); err != nil {
		t.Fatal(err)
	}
	if err := v.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if said := v.ended(t); v.err != nil {
		t.Errorf("the VMM ended with %v: %s", v.err, said)
	}
	// Its kernel found no root and said so, before it reset the machine.
	b, err := os.ReadFile(filepath.Join(v.dir, serialName))
	if err != nil || !bytes.Contains(b, []byte("Unable to mount root")) || len(b) > kept {
		t.Errorf("its console's file has %d bytes, %v: %q", len(b), err, b)
	}
}

// edit changes a copy of the test kernel.
func edit(t *testing.T, dir string, change func([]byte) []byte) {
	t.Helper()
	name := filepath.Join(dir, "vmlinux")
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, change(b), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestWhatCantBeBootedIsRefusedInWords(t *testing.T) {
	dir := vmFiles(t)
	v := serve(t, dir)
	boot := func() string {
		t.Helper()
		err := v.PutBootSource(t.Context(), firecracker.BootSource{KernelImagePath: "/vmlinux"})
		if err == nil {
			return ""
		}
		_, said, _ := strings.Cut(err.Error(), "the VMM answers 400: ")
		return said
	}
	if said := boot(); said != "" {
		t.Fatalf("a good kernel: %s", said)
	}
	for _, tc := range []struct {
		name   string
		change func([]byte) []byte
		want   string
	}{
		{"without the note", func(b []byte) []byte {
			return bytes.ReplaceAll(b, []byte("\x12\x00\x00\x00Xen\x00"), []byte("\x13\x00\x00\x00Xen\x00"))
		}, "it has no PVH entry point (CONFIG_PVH)"},
		{"of another processor", func(b []byte) []byte { b[18] = 183; return b }, "it is for EM_AARCH64, not for x86-64"},
		{"cut off", func(b []byte) []byte { b[18] = 62; return b[:len(b)/2] }, "it is cut off"},
		{"no ELF", func([]byte) []byte { return []byte("#!/bin/sh\n") }, "it is no ELF file, as an uncompressed kernel is"},
	} {
		edit(t, dir, tc.change)
		if said := boot(); !strings.HasPrefix(said, "kernel_image_path: /vmlinux is not a kernel to boot: "+tc.want) {
			t.Errorf("a kernel %s: %s", tc.name, said)
		}
	}
	name := filepath.Join(dir, "vmlinux")
	if err := os.Chmod(name, 0o600); err != nil {
		t.Fatal(err)
	}
	if said := boot(); said != "kernel_image_path: /vmlinux: permission denied" {
		t.Errorf("a kernel that is root's alone: %s", said)
	}
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/shadow", name); err != nil {
		t.Fatal(err)
	}
	if said := boot(); said != "kernel_image_path: /vmlinux is not a regular file" {
		t.Errorf("a link: %s", said)
	}
}

func TestMemoryThatTheHostRefusesIsSaid(t *testing.T) {
	// A host may refuse nothing at all (vm.overcommit_memory): this VMM inherits a
	// limit that does.
	dir := vmFiles(t)
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_AS, &before); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_AS, &unix.Rlimit{Cur: 6 << 30, Max: before.Max}); err != nil {
		t.Fatal(err)
	}
	v := serve(t, dir)
	if err := unix.Setrlimit(unix.RLIMIT_AS, &before); err != nil {
		t.Fatal(err)
	}
	v.configure(t)
	if err := v.PutMachineConfig(t.Context(), firecracker.MachineConfig{VCPUCount: 1, MemSizeMiB: 8 << 10}); err != nil {
		t.Fatal(err)
	}
	if err := v.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "Cannot allocate memory") {
		t.Errorf("got %v", err)
	}
	if said := v.ended(t); v.err == nil || !strings.Contains(said, "Cannot allocate memory") {
		t.Errorf("the VMM ended with %v: %s", v.err, said)
	}
}

func TestVMMThatCantBeginSaysWhy(t *testing.T) {
	noDir := filepath.Join(t.TempDir(), "none")
	used := t.TempDir()
	if err := os.WriteFile(filepath.Join(used, apiName), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		dir, want string
		args      []string
	}{
		"no directory":             {noDir, "the machine's directory: lstat " + noDir + ": no such file or directory", nil},
		"a directory that is used": {used, "listen at " + used + "/api.sock: ", nil},
		"no QEMU":                  {t.TempDir(), "/nowhere/qemu is not a program: open /nowhere/qemu: no such file or directory", []string{"--qemu", "/nowhere/qemu"}},
		"a QEMU that is text":      {t.TempDir(), "is not a program: bad magic number", []string{"--qemu", script(t, "exit 0")}},
		"no such group":            {t.TempDir(), "enter the machine's control group: open /nowhere/cgroup.procs: no such file or directory", []string{"--cgroup", "/nowhere"}},
	} {
		t.Run(name, func(t *testing.T) {
			v := spawn(t, tc.dir, tc.args...)
			if said := v.ended(t); v.err == nil || !strings.HasPrefix(said, "vmm-qemu: ") || !strings.Contains(said, tc.want) {
				t.Errorf("it ended with %v: %s\nwant %s", v.err, said, tc.want)
			}
		})
	}
}

func TestQEMUThatExitsAtOnceIsQuoted(t *testing.T) {
	// A program that is there on every host with a C library, and does not know
	// QEMU's options.
	path, err := exec.LookPath("mount")
	if err != nil {
		t.Skip(err)
	}
	v := serve(t, vmFiles(t), "--qemu", path)
	v.configure(t)
	err = v.Start(t.Context())
	said := v.ended(t)
	if err == nil || v.err == nil || !strings.Contains(said, "QEMU ended with status ") {
		t.Errorf("got %v; the VMM ended with %v: %s", err, v.err, said)
	}
}

func TestOnlyRootCallsTheAPI(t *testing.T) {
	dir := filepath.Join(vmFiles(t), strings.Repeat("deep/", 25)) // deeper than a socket's address reaches
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	v := serve(t, dir)
	if _, err := v.Instance(t.Context()); err != nil {
		t.Error(err)
	}
	for _, name := range []string{apiName, vsockName, serialName} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if st := info.Sys().(*syscall.Stat_t); st.Uid != 0 || info.Mode().Perm() != 0o600 {
			t.Errorf("%s is of uid %d, mode %v", name, st.Uid, info.Mode())
		}
	}
}

func TestConsoleKeepsItsEndAndNoMore(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "serial"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var c tail
	c.keepIn(file)
	for i := range 10_000 {
		fmt.Fprintf(&c, "%0999d\n", i)
	}
	c.Write(bytes.Repeat([]byte("y"), 3*kept))
	fmt.Fprint(&c, "\nthe \x1b[31mlast\x00 one\r\n\n")
	if n := cap(c.bytes); n > 8*kept {
		t.Errorf("10 MB of console take %d bytes", n)
	}
	c.save()
	b, err := os.ReadFile(file.Name())
	if err != nil || len(b) != kept || !bytes.HasSuffix(b, []byte("one\r\n\n")) {
		t.Errorf("its file has %d bytes, %v", len(b), err)
	}
	if got, want := c.lines(1, ""), "the [31mlast one"; got != want {
		t.Errorf("its last line is %q, want %q", got, want)
	}
}

func TestGuestsPortsAreTheDirectorysSockets(t *testing.T) {
	// What the guest does with its vsock is tested with the device; here it is that
	// the jailed device reaches the sockets, and the host the device.
	v := paused(t)
	conn, err := net.Dial("unix", filepath.Join(v.dir, vsockName))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := fmt.Fprint(conn, "HELLO\n"); err != nil {
		t.Fatal(err)
	}
	// Firecracker hangs up on who does not say CONNECT.
	if n, err := conn.Read(make([]byte, 1)); err == nil {
		t.Errorf("it answers %d bytes", n)
	}
}
