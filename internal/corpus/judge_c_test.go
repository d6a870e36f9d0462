package corpus

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/mountinfo"
)

// kernelFiles are those whose writing takes the host over, or brings it down.
var kernelFiles = []string{
	"/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/vm/drop_caches", "/proc/sys/fs/binfmt_misc/register",
	"/sys/kernel/uevent_helper", "/proc/sys/kernel/modprobe", "/proc/sys/kernel/hostname", "/proc/sys/vm/panic_on_oom",
	"/sys/kernel/mm/transparent_hugepage/enabled",
}

func quoted(paths []string) string {
	var b strings.Builder
	for _, p := range paths {
		fmt.Fprintf(&b, "'%s', ", p)
	}
	return b.String()
}

// hostAccounts finds a line of the host's /etc/shadow that the image lacks.
func hostAccounts(r *run) []finding {
	host, err := os.ReadFile("/etc/shadow")
	if err != nil {
		return []finding{found(infra, "%v", err)}
	}
	image, err := os.ReadFile(filepath.Join(r.world.rootfs, "etc/shadow"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return []finding{found(infra, "%v", err)}
	}
	for line := range bytes.Lines(host) {
		if line = bytes.TrimSpace(line); len(line) == 0 || bytes.Contains(image, line) {
			continue
		}
		for _, s := range r.surfaces {
			if bytes.Contains(s.raw, line) {
				return []finding{found(hostLeak, "a line of the host's /etc/shadow is in %s", s.name)}
			}
		}
	}
	return nil
}

// hostPaths finds where on the host the sandbox lies, or whose it is, in what the
// workload could read.
func hostPaths(r *run) []finding { return pathsIn(r, strings.ReplaceAll(r.stdout(), r.flagPath, "")) }

func pathsIn(r *run, text string) (all []finding) {
	forbidden := map[string]string{
		"the directory of the sandboxes": r.world.dir, "the directory of the image": r.world.rootfs, "the instance of the control plane": r.world.instance,
		"the address of the control plane": r.world.plane.URL, "the tenant": "acme", "a directory of the harness": "/var/tmp/" + ours,
	}
	for what, s := range forbidden {
		if s != "" && strings.Contains(text, s) {
			all = append(all, found(hostLeak, "the workload can read %s (%s)", what, s))
		}
	}
	return all
}

// environmentOfTheHost is hostPaths, and the words with which the host was booted.
func environmentOfTheHost(r *run) []finding {
	all := hostPaths(r)
	boot, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return []finding{found(infra, "%v", err)}
	}
	if boot = bytes.TrimSpace(boot); len(boot) > 0 && strings.Contains(r.stdout(), string(boot)) {
		all = append(all, found(hostLeak, "the workload can read how the host was booted"))
	}
	return all
}

// mountsOfTheHost is hostPaths but for what Docker can't hide: the kernel shows
// each process where the bind mounts of its container come from, and with which
// directories of the daemon its root was made (docs/docker.md).
func mountsOfTheHost(r *run) []finding {
	if r.world.kernel.letter != "D" || r.bare {
		return hostPaths(r)
	}
	var rest strings.Builder
	for line := range strings.Lines(r.stdout()) {
		m, err := mountinfo.Parse(line)
		declared := err == nil && len(m) == 1 && slices.Contains([]string{"/", "/.enclave", "/etc/resolv.conf", "/etc/hosts", "/etc/hostname"}, m[0].Point)
		if !declared {
			rest.WriteString(line)
		}
	}
	r.declared = "on Docker the workload can read where the daemon's and Enclave's directories are"
	return pathsIn(r, rest.String())
}

// collectNaively is a collector of results that trusts names.
func collectNaively(r *run, root string) error {
	for _, n := range []string{"out.json", "sparse"} {
		fi, err := os.Lstat(filepath.Join(root, "work", n))
		if err != nil {
			return err
		}
		if fi.Mode()&fs.ModeNamedPipe != 0 {
			r.find(hostDoS, "whoever opens %s waits for ever", n)
		}
		if fi.Size() >= 1<<40 {
			r.find(hostDoS, "whoever reads %s reads %d bytes", n, fi.Size())
		}
	}
	return nil
}

// unpackNaively is an unpacker that trusts names, inside of the victim.
func unpackNaively(r *run, root string) error {
	out, err := exec.Command("chroot", root, "sh", "-c", "mkdir -p /work/x/y && cd /work/x/y && tar -xPf /work/a.tar").CombinedOutput()
	if err != nil {
		return fmt.Errorf("unpack: %w: %s", err, out)
	}
	return nil
}

// filesOutsideAreRefused asks for sessions with files outside of /work.
func filesOutsideAreRefused(r *run) (all []finding) {
	if r.bare {
		return nil
	}
	for _, name := range []string{"../../" + r.nonce, "/" + r.nonce, "a/../../" + r.nonce, "..", "a/..", "./../" + r.nonce, "a\x00b", "", "/", "a//../../b"} {
		h, err := r.world.client.Run(context.Background(), enclave.SessionRequest{Code: "pass", Files: map[string]string{name: "x"}})
		if err == nil {
			all = append(all, found(escape, "a session has a file called %q", name))
			_ = h.Teardown(context.Background())
		} else if !errors.Is(err, enclave.ErrInvalid) {
			all = append(all, found(hostDoS, "a file called %q is answered with %v", name, err))
		}
	}
	r.proofs = append(r.proofs, "files outside of /work are refused in a request")
	return all
}

// directoriesLeftOpen finds a directory of the host that a workload's process, as
// the host sees it, has open. gVisor's workloads are no processes of the host.
func directoriesLeftOpen(r *run) (all []finding) {
	for _, t := range r.tasks {
		if !strings.Contains(t.cmd, "python") {
			continue
		}
		for _, f := range t.fds {
			if strings.HasPrefix(f.link, "/") && !strings.HasPrefix(f.link, "/dev/") && f.link != "/proc/"+fmt.Sprint(t.pid)+"/fd" {
				all = append(all, found(hostLeak, "the workload has %s open", f.link))
			}
		}
	}
	return append(all, hostPaths(r)...)
}

// hostSockets listens on a socket with a name in no directory and on one in /run.
// Whoever connects is no client of theirs.
func hostSockets(r *run) error {
	for _, name := range []string{"@" + ours + r.nonce, "/run/" + ours + r.nonce + ".sock"} {
		l, err := net.Listen("unix", name)
		if err != nil {
			return err
		}
		if name[0] == '/' {
			if err := os.Chmod(name, 0o777); err != nil {
				return err
			}
		}
		r.serve(l, func(net.Conn) { r.find(lateral, "the sandbox connected to %s of the host", name) })
	}
	return nil
}

// nothingWritten finds a file that the workload says it could open for writing. On
// Docker it would be one of a layer that goes with the container, but lies on the
// host's disk, which nothing counts.
func nothingWritten(r *run) (all []finding) {
	for line := range strings.Lines(r.stdout()) {
		if strings.HasPrefix(line, "WROTE ") {
			all = append(all, found(escape, "a file of the image could be written: %s", strings.TrimSpace(line)))
		}
	}
	return all
}

// nextSessionIsClean looks for what the attack would have left in the image.
func nextSessionIsClean(r *run) []finding {
	if r.bare {
		return nil
	}
	if err := r.world.clean(context.Background(), clean{name: "the next session", code: "import os\nenclave.result([p for p in os.listdir('/') + os.listdir('/lib/') if '" + r.nonce + "' in p])", want: "[]"}); err != "" {
		return []finding{found(escape, "the next session: %s", err)}
	}
	r.proofs = append(r.proofs, "the next session of the same image has nothing of it")
	return nil
}

// sumPrograms notes what the programs are that run a sandbox.
func sumPrograms(r *run) error {
	var err error
	r.sums, err = sums(r.world)
	return err
}

func programsAreWhatTheyWere(r *run) []finding {
	after, err := sums(r.world)
	if err != nil {
		return []finding{found(infra, "%v", err)}
	}
	var all []finding
	for p, was := range r.sums {
		if now, ok := after[p]; ok && now != was {
			all = append(all, found(escape, "the program %s was written", p))
		}
	}
	r.proofs = append(r.proofs, fmt.Sprintf("SHA-256 of %d programs unchanged", len(r.sums)))
	return all
}

// sums are those of all programs that the backend starts: its own and its copies.
func sums(w *world) (map[string]string, error) {
	list := append([]string(nil), w.programs...)
	for _, name := range []string{"runc", "containerd-shim-runc-v2", "dockerd"} {
		if p, err := exec.LookPath(name); err == nil {
			list = append(list, p)
		}
	}
	err := filepath.WalkDir(w.dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if fi, err := d.Info(); err == nil && fi.Mode()&0o111 != 0 && fi.Size() > 1<<20 {
				list = append(list, p)
			}
		}
		return nil // a sandbox's directory may go meanwhile
	})
	if err != nil {
		return nil, err
	}
	all := map[string]string{}
	for _, p := range list {
		f, err := os.Open(p)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, err
		}
		h := sha256.New()
		_, err = io.Copy(h, f)
		f.Close()
		if err != nil {
			return nil, err
		}
		all[p] = hex.EncodeToString(h.Sum(nil))
	}
	return all, nil
}
