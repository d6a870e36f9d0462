//go:build linux

package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/enclave-run/enclave/internal/testenv"
	"github.com/enclave-run/enclave/internal/wire"
)

// newGVisor starts the guest in gVisor, on the default image.
func newGVisor(t testing.TB) *sandbox {
	t.Helper()
	testenv.Need(t, "gvisor")
	programs := testenv.Binaries(t)
	images, digest := testenv.Image(t)
	root, err := images.Rootfs(digest)
	if err != nil {
		t.Fatal(err)
	}

	guest, err := buildGuest()
	if err != nil {
		t.Fatal(err)
	}
	shared, bundle, state := t.TempDir(), t.TempDir(), t.TempDir()
	copyFile(t, guest, filepath.Join(shared, wire.GuestName))
	caps := []string{"CAP_NET_ADMIN", "CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP", "CAP_KILL"}
	type object map[string]any
	tmpfs := func(path, mode string) object {
		return object{"destination": path, "type": "tmpfs", "source": "tmpfs", "options": []string{"nosuid", "nodev", "mode=" + mode}}
	}
	config, err := json.Marshal(object{
		"ociVersion": "1.0.0",
		"process": object{
			"user": object{"uid": 0, "gid": 0}, "args": []string{wire.Guest}, "cwd": "/", "env": []string{"PATH=/bin"},
			"capabilities": object{"bounding": caps, "effective": caps, "permitted": caps},
		},
		"root": object{"path": root, "readonly": true},
		"mounts": []object{
			{"destination": "/proc", "type": "proc", "source": "proc"},
			tmpfs(wire.WorkDir, "1777"), tmpfs("/tmp", "1777"), tmpfs(wire.RunDir, "755"),
			{"destination": filepath.Dir(wire.Guest), "type": "bind", "source": shared, "options": []string{"bind", "ro"}},
		},
		"linux": object{"namespaces": []object{{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), config, 0o644); err != nil {
		t.Fatal(err)
	}
	runsc := func(args ...string) *exec.Cmd {
		return exec.Command(programs.Runsc, append([]string{"--root=" + state, "--network=none", "--host-uds=open",
			"--overlay2=none", "--ignore-cgroups"}, args...)...)
	}
	const id = "guest"
	// Registered before startSandbox's, so it runs after that has ended the runtime.
	t.Cleanup(func() {
		if out, err := runsc("delete", "-force", id).CombinedOutput(); err != nil {
			t.Errorf("delete the sandbox: %v: %s", err, out)
		}
		// runsc keeps the namespace it gave the sandbox mounted there.
		_ = exec.Command("umount", filepath.Join(state, "null-netns")).Run()
	})
	return startSandbox(t, shared, runsc("run", "--bundle="+bundle, id))
}
