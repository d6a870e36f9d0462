// Package testenv says what a test may count on: privileges, kernels, built
// programs and an image. It never fakes what is missing: a test that needs it is
// skipped with the reason, or fails where ENCLAVE_REQUIRE names the need, so that
// a skipped test can't pass for a run one.
//
// Only tests import it.
package testenv

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Need skips t, with a reason of one line, unless this host has what name
// stands for. If the comma-separated list ENCLAVE_REQUIRE has name, it fails
// instead. A name it does not know is always a failure: a misspelt need would
// skip its test for ever.
//
// With ENCLAVE_TEST_QUICK it skips whatever the host has: what is left needs nothing
// of it (`make test-quick`).
//
// The names are root, gvisor, docker, qemu, firecracker, kubernetes, netns
// (network namespaces), tun (TUN devices in them), mount, loop (file systems on
// loop devices) and mmdebstrap.
func Need(t testing.TB, name string) {
	t.Helper()
	require := os.Getenv("ENCLAVE_REQUIRE")
	if os.Getenv("ENCLAVE_TEST_QUICK") != "" {
		if require != "" {
			t.Fatal("ENCLAVE_TEST_QUICK leaves out what ENCLAVE_REQUIRE wants: unset one")
		}
		t.Skipf("needs %s, which ENCLAVE_TEST_QUICK leaves out", name)
	}
	need(t, name, probes(), require)
}

func need(t testing.TB, name string, known map[string]func() error, require string) {
	t.Helper()
	required := false
	for r := range strings.SplitSeq(require, ",") {
		r = strings.TrimSpace(r)
		if r == "" {
			continue
		}
		if known[r] == nil {
			t.Fatalf("ENCLAVE_REQUIRE names %q, which is no need that a test can have", r)
		}
		required = required || r == name
	}
	probe := known[name]
	if probe == nil {
		t.Fatalf("%q is not a need that a test can have", name)
	}
	err := probe()
	switch {
	case err == nil:
	case required:
		t.Fatalf("needs %s, which ENCLAVE_REQUIRE names: %v", name, err)
	default:
		t.Skipf("needs %s: %v", name, err)
	}
}

// probes returns a check for each name. A check looks at this host and changes
// nothing on it.
func probes() map[string]func() error {
	return map[string]func() error{
		"root":        isRoot,
		"netns":       sysAdmin,
		"tun":         func() error { return all(sysAdmin, device("/dev/net/tun")) },
		"mount":       sysAdmin,
		"gvisor":      gvisor,
		"loop":        func() error { return all(sysAdmin, has("mkfs.ext4"), has("losetup"), device("/dev/loop-control")) },
		"docker":      docker,
		"qemu":        qemu,
		"firecracker": firecracker,
		"kubernetes":  kubernetes,
		"mmdebstrap":  func() error { return all(isRoot, has("mmdebstrap")) },
	}
}

func all(checks ...func() error) error {
	for _, c := range checks {
		if err := c(); err != nil {
			return err
		}
	}
	return nil
}

func has(program string) func() error {
	return func() error {
		_, err := exec.LookPath(program)
		return err
	}
}

func device(path string) func() error {
	return func() error {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		return f.Close()
	}
}

func isRoot() error {
	if uid := os.Geteuid(); uid != 0 {
		return fmt.Errorf("running as uid %d", uid)
	}
	return nil
}

// sysAdmin is more than isRoot: root in an unprivileged container may make no
// namespace and mount nothing.
func sysAdmin() error {
	const capSysAdmin = 21 // capabilities(7)
	if err := isRoot(); err != nil {
		return err
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	for line := range bytes.Lines(status) {
		var caps uint64
		if n, _ := fmt.Sscanf(string(line), "CapEff: %x", &caps); n == 1 {
			if caps&(1<<capSysAdmin) == 0 {
				return fmt.Errorf("root lacks CAP_SYS_ADMIN")
			}
			return nil
		}
	}
	return fmt.Errorf("/proc/self/status names no capabilities")
}

// gvisor needs no runtime on the host: enclave-runsc is built from this module.
func gvisor() error {
	if err := all(sysAdmin, has("go")); err != nil && os.Getenv("ENCLAVE_TEST_BIN") == "" {
		return err
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	if !bytes.Contains(mounts, []byte(" - cgroup")) {
		return fmt.Errorf("no cgroup file system is mounted")
	}
	return sysAdmin()
}

// docker needs a daemon's program: tests start one of their own (see Docker).
func docker() error {
	return all(gvisor, has("dockerd"), has("runc"), has("curl"), device("/dev/net/tun"))
}

// qemu is its program, and the rights to jail it. The kernel that it boots is
// another matter (see Kernels).
func qemu() error { return all(gvisor, has("qemu-system-"+machine())) }

// firecracker is asked for by naming its two programs: it runs nowhere else.
func firecracker() error {
	for _, v := range []string{"FIRECRACKER_BIN", "JAILER_BIN"} {
		if os.Getenv(v) == "" {
			return fmt.Errorf("%s names no program (make test-firecracker FIRECRACKER_BIN=... JAILER_BIN=...)", v)
		}
		if err := has(os.Getenv(v))(); err != nil {
			return fmt.Errorf("%s: %w", v, err)
		}
	}
	return all(sysAdmin, device("/dev/kvm"))
}

// Firecracker returns the programs that FIRECRACKER_BIN and JAILER_BIN name.
func Firecracker(t testing.TB) (firecracker, jailer string) {
	t.Helper()
	Need(t, "firecracker")
	var paths []string
	for _, v := range []string{"FIRECRACKER_BIN", "JAILER_BIN"} {
		path, err := filepath.Abs(os.Getenv(v))
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	return paths[0], paths[1]
}

func kubernetes() error {
	out, err := exec.Command("kubectl", "--request-timeout=5s", "get", "--raw", "/readyz").CombinedOutput()
	if err != nil {
		return fmt.Errorf("kubectl get --raw /readyz: %w: %s", err, firstLine(out))
	}
	return nil
}

func firstLine(b []byte) string {
	line, _, _ := strings.Cut(strings.TrimSpace(string(b)), "\n")
	return line
}
