package docker

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/client"

	"github.com/enclave-run/enclave/internal/mountinfo"
	"github.com/enclave-run/enclave/internal/testenv"
	"github.com/enclave-run/enclave/internal/wire"
)

// What a container can do on the host, as the host's kernel sees it.
func TestASandboxIsConfinedAsDeclared(t *testing.T) {
	host := testenv.Docker(t)
	b := open(t, config(t, host))
	x := start(t, b, newID())
	if !x.hello.IPv6 {
		t.Error("IPv6 is off: attempts over it would be no packets")
	}
	p, err := x.guest.Start(deadline(t), wire.StartRequest{Language: "python", Code: "import time\nprint('here', flush=True)\ntime.sleep(600)\n"})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for {
		e, err := p.Next()
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind == wire.Stdout {
			break
		}
	}
	s, err := b.Sandbox(x.id)
	if err != nil {
		t.Fatal(err)
	}
	containers, err := daemon(t, host).ContainerList(deadline(t), client.ContainerListOptions{Filters: make(client.Filters).Add("label", sandboxLabel+"="+string(x.id))})
	if err != nil || len(containers.Items) != 1 {
		t.Fatalf("containers %v, %v", containers.Items, err)
	}
	inner, err := s.Group.Below(containers.Items[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	pids, err := inner.Procs()
	if err != nil || len(pids) < 2 {
		t.Fatalf("processes %v, %v", pids, err)
	}
	for _, pid := range pids {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			t.Fatal(err)
		}
		field := map[string]string{}
		for line := range strings.Lines(string(status)) {
			k, v, _ := strings.Cut(line, ":")
			field[k] = strings.Join(strings.Fields(v), " ")
		}
		user := fmt.Sprint(x.hello.UID)
		want := map[string]string{
			"CapInh": "0000000000000000", "CapPrm": "0000000000000000", "CapEff": "0000000000000000",
			"CapBnd": "0000000000000000", "CapAmb": "0000000000000000",
			"NoNewPrivs": "1", "Seccomp": "2", "Uid": strings.Join([]string{user, user, user, user}, " "),
		}
		if field["Uid"] == "0 0 0 0" {
			// The guest: KILL, SETGID and SETUID, to run and end workloads.
			want["Uid"], want["CapPrm"], want["CapEff"] = "0 0 0 0", "00000000000000e0", "00000000000000e0"
		}
		for k, v := range want {
			if field[k] != v {
				t.Errorf("process %d (%s): %s is %q, want %q", pid, field["Name"], k, field[k], v)
			}
		}
		for _, ns := range []string{"net", "mnt", "ipc", "uts", "pid", "cgroup"} {
			ours, err := os.Readlink("/proc/self/ns/" + ns)
			theirs, terr := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns))
			if err != nil || terr != nil || ours == theirs {
				t.Errorf("process %d has our %s namespace (%v, %v)", pid, ns, err, terr)
			}
		}
	}
	if x.hello.UID < firstUser {
		t.Errorf("workloads are user %d of the host", x.hello.UID)
	}
	mounts, err := mountinfo.TableOf(pids[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mounts {
		if slices.Contains(m.Options, "ro") {
			continue
		}
		// What can be written is memory, or a device without a file system.
		if !slices.Contains([]string{"tmpfs", "proc", "devpts", "mqueue"}, m.Type) {
			t.Errorf("%s can be written: %s", m.Point, m.Line)
		}
	}
}

// confined is what stands between a daemon that does other than it was told and
// a sandbox that trusts it.
func TestAContainerThatIsMountedOtherwiseIsRefused(t *testing.T) {
	testenv.Need(t, "root")
	if err := confined(os.Getpid()); err == nil {
		t.Error("the mounts of this process are taken for a sandbox's")
	}
}
