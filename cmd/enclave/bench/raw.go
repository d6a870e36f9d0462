package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// A raw is an OCI bundle that runsc runs without Enclave: the same image, the
// same program, no guest, no network, no limits.
type raw struct {
	dir, runsc string
	n          int
}

func newRaw(c Config) (*raw, error) {
	dir, err := os.MkdirTemp(c.Temp, "enclave-bench-")
	if err != nil {
		return nil, err
	}
	spec := map[string]any{
		"ociVersion": "1.0.2",
		"process": map[string]any{
			"user": map[string]any{"uid": 1000, "gid": 1000},
			"args": []string{"python3", "-c", hello},
			"env":  []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/work"},
			"cwd":  "/work",
		},
		"root":     map[string]any{"path": c.Rootfs, "readonly": true},
		"hostname": "sandbox",
		"mounts": []map[string]any{
			{"destination": "/proc", "type": "proc", "source": "proc"},
			{"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
			{"destination": "/work", "type": "tmpfs", "source": "tmpfs"},
		},
		"linux": map[string]any{"namespaces": []map[string]any{{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}}},
	}
	b, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), b, 0o644); err != nil {
		return nil, err
	}
	return &raw{dir: dir, runsc: c.Runsc}, nil
}

// run runs the bundle once and leaves nothing of it but the runtime's own
// null-netns mount, which close removes.
func (r *raw) run(ctx context.Context) error {
	r.n++
	cmd := exec.CommandContext(ctx, r.runsc, "--root", filepath.Join(r.dir, "root"), "--network=none", "--ignore-cgroups",
		"run", "--bundle", r.dir, fmt.Sprintf("bench%015d", r.n))
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("runsc run: %w: %s", err, out)
	}
	if string(out) != "hello\n" {
		return fmt.Errorf("runsc run printed %q", out)
	}
	return nil
}

func (r *raw) close() {
	unmountBelow(r.dir)
	os.RemoveAll(r.dir)
}
