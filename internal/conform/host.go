package conform

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

func noHostFiles(ctx context.Context, lab Lab) error {
	secret := string(newID())
	dir, err := os.MkdirTemp("", "enclave-conform-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "canary")
	// Everyone may read it: only that it is not there can hide it.
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(file, []byte(secret), 0o644)); err != nil {
		return err
	}
	return inside(ctx, lab, limits(), func(s *sandbox) error {
		code := fmt.Sprintf(`import json, os
path = %q
found, tried = [], 0
for p in [path, "/proc/1/root" + path, "/proc/self/root" + path, "/host" + path, "/mnt" + path, "/../.." + path]:
    tried += 1
    try:
        found.append([p, open(p).read()])
    except OSError:
        pass
try:
    mounts = open("/proc/self/mounts").read()
except OSError:
    mounts = ""
for line in mounts.splitlines():
    point = line.split()[1]
    tried += 1
    try:
        found.append([point, open(point + path).read()])
    except OSError:
        pass
print(json.dumps({"tried": tried, "found": found}))
`, file)
		var said struct {
			Tried int
			Found [][]string
		}
		if err := s.ask(ctx, code, &said); err != nil {
			return err
		}
		if said.Tried < 6 {
			return fmt.Errorf("the probe tried %d places", said.Tried)
		}
		for _, f := range said.Found {
			if strings.Contains(strings.Join(f, " "), secret) {
				return fmt.Errorf("a file of the host was read at %s", f[0])
			}
		}
		return nil
	})
}

// readOnlyRoot leaves /dev/shm out: where a backend gives one, it is the sandbox's
// own memory and counts as that.
func readOnlyRoot(ctx context.Context, lab Lab) error {
	return inside(ctx, lab, limits(), func(s *sandbox) error {
		code := fmt.Sprintf(`import json, os
name = "enclave-conform-%s"
written, may = [], []
def put(directory, into):
    path = os.path.join(directory, name)
    try:
        with open(path, "w") as f:
            f.write("x")
        into.append(directory)
        os.unlink(path)
    except OSError:
        pass
for d in ["/", "/etc", "/usr", "/usr/bin", "/usr/lib", "/bin", "/root", "/home", "/var", "/var/tmp", "/opt", "/srv", "/.enclave", "/run", "/dev", "/sys/fs/cgroup"]:
    put(d, written)
for d in ["/work", "/tmp"]:
    put(d, may)
for f in ["/etc/passwd", "/etc/resolv.conf", "/usr/bin/env", "/.enclave/enclave-guest"]:
    try:
        os.close(os.open(f, os.O_WRONLY | os.O_APPEND))
        written.append(f)
    except OSError:
        pass
print(json.dumps({"written": written, "may": may}))
`, newID())
		var said struct{ Written, May []string }
		if err := s.ask(ctx, code, &said); err != nil {
			return err
		}
		if len(said.Written) > 0 {
			return fmt.Errorf("the workload can write %q", said.Written)
		}
		if len(said.May) != 2 {
			return fmt.Errorf("of /work and /tmp the workload can write only %q", said.May)
		}
		return nil
	})
}

// noHostEnv puts a canary in the environment of this process, which starts the
// sandbox, and looks for it in every environment that the workload can read.
func noHostEnv(ctx context.Context, lab Lab) error {
	secret := string(newID())
	const name = "ENCLAVE_CONFORM_CANARY"
	if err := os.Setenv(name, secret); err != nil {
		return err
	}
	defer os.Unsetenv(name)
	return inside(ctx, lab, limits(), func(s *sandbox) error {
		const code = `import glob, json, os
read = [dict(os.environ)]
for f in glob.glob("/proc/*/environ"):
    try:
        read.append(open(f, errors="replace").read())
    except OSError:
        pass
print(json.dumps(read))
`
		var read []any
		if err := s.ask(ctx, code, &read); err != nil {
			return err
		}
		own, ok := read[0].(map[string]any)
		if !ok || own["HOME"] != "/work" {
			return fmt.Errorf("the workload's own environment is %v", read[0])
		}
		if strings.Contains(fmt.Sprint(read), secret) {
			return errors.New("the environment of the host's process is in the sandbox")
		}
		for _, v := range os.Environ() {
			k, v, _ := strings.Cut(v, "=")
			if got, ok := own[k]; ok && got == v && k != "PATH" && k != "LANG" && k != "HOME" && k != "TMPDIR" && v != "" {
				return fmt.Errorf("the workload has the host's %s", k)
			}
		}
		return nil
	})
}

func unprivileged(ctx context.Context, lab Lab) error {
	return inside(ctx, lab, limits(), func(s *sandbox) error {
		const code = `import ctypes, json, os
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines() if ":" in line)
libc = ctypes.CDLL(None, use_errno=True)
can = []
def attempt(name, f):
    try:
        if f() == 0:
            can.append(name)
    except OSError:
        pass
attempt("setuid(0)", lambda: libc.setuid(0))
attempt("setgid(0)", lambda: libc.setgid(0))
attempt("chroot", lambda: os.chroot("/tmp") or 0)
attempt("mount", lambda: libc.mount(b"x", b"/tmp", b"tmpfs", 0, None))
attempt("sethostname", lambda: libc.sethostname(b"x", 1))
suid = []
for directory in ["/bin", "/sbin", "/usr/bin", "/usr/sbin", "/usr/lib", "/usr/libexec"]:
    try:
        for e in os.scandir(directory):
            if e.is_file(follow_symlinks=False) and e.stat(follow_symlinks=False).st_mode & 0o6000:
                suid.append(e.path)
    except OSError:
        pass
print(json.dumps({
    "uids": os.getresuid(), "gids": os.getresgid(), "groups": os.getgroups(),
    "caps": {k: int(status[k], 16) for k in ("CapInh", "CapPrm", "CapEff", "CapAmb") if k in status},
    "noNewPrivs": libc.prctl(39, 0, 0, 0, 0), "can": can, "suid": suid,
}))
`
		var said struct {
			UIDs, GIDs, Groups []int
			Caps               map[string]uint64
			NoNewPrivs         int
			Can, SUID          []string
		}
		if err := s.ask(ctx, code, &said); err != nil {
			return err
		}
		for _, id := range append(append(said.UIDs, said.GIDs...), said.Groups...) {
			if id == 0 {
				return fmt.Errorf("the workload is uids %v, gids %v, groups %v", said.UIDs, said.GIDs, said.Groups)
			}
		}
		if _, ok := said.Caps["CapEff"]; !ok {
			return errors.New("the workload's capabilities are not known")
		}
		for k, v := range said.Caps {
			if v != 0 {
				return fmt.Errorf("the workload has %s %#x", k, v)
			}
		}
		if said.NoNewPrivs != 1 {
			return errors.New("the workload can gain privileges: no_new_privs is not set")
		}
		if len(said.Can) > 0 || len(said.SUID) > 0 {
			return fmt.Errorf("the workload can %q, and there is set-user-ID %q", said.Can, said.SUID)
		}
		return nil
	})
}
