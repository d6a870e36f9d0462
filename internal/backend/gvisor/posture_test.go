package gvisor

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
)

// What gVisor's own processes could do on the host, if a workload took them
// over.
func TestAllProcessesOfASandboxAreConfined(t *testing.T) {
	b := open(t, t.TempDir())
	x := start(t, b, limits())
	// Programs of the workload are processes of the host too.
	x.send(t, order{Argv: []string{"self", "fork", "3", "stay"}}).Read(make([]byte, 1))
	pids, err := x.procs()
	if err != nil || len(pids) < 3 {
		t.Fatalf("processes %v, %v", pids, err)
	}
	own, err := entry(t, b, x.id).User()
	if err != nil {
		t.Fatal(err)
	}
	filtered := 0
	for _, pid := range pids {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if os.IsNotExist(err) {
			continue // it has ended since
		}
		if err != nil {
			t.Fatal(err)
		}
		field := map[string][]string{}
		for line := range strings.Lines(string(status)) {
			k, v, _ := strings.Cut(line, ":")
			field[k] = strings.Fields(v)
		}
		for _, ids := range [][]string{field["Uid"], field["Gid"]} {
			for _, id := range ids {
				if n, err := strconv.Atoi(id); err != nil || n != int(own) {
					t.Errorf("process %d is user %s of the host", pid, id)
				}
			}
		}
		for _, ns := range []string{"user", "net", "mnt", "ipc", "uts"} {
			ours, err := os.Readlink("/proc/self/ns/" + ns)
			theirs, terr := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns))
			if os.IsNotExist(terr) {
				continue
			}
			if err != nil || terr != nil || ours == theirs {
				t.Errorf("process %d has the %s namespace %s, ours is %s (%v, %v)", pid, ns, theirs, ours, err, terr)
			}
		}
		if field["Seccomp"][0] == "2" {
			filtered++
		}
		caps, err := strconv.ParseUint(field["CapEff"][0], 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		// In a user namespace, over its own users: CHOWN, DAC_OVERRIDE,
		// DAC_READ_SEARCH, FOWNER and FSETID; the file server also has SETGID,
		// SETUID and SYS_CHROOT, the kernel SYS_PTRACE.
		if extra := caps &^ (1<<0 | 1<<1 | 1<<2 | 1<<3 | 1<<4 | 1<<6 | 1<<7 | 1<<18 | 1<<19); extra != 0 {
			t.Errorf("process %d %v has capabilities %x", pid, field["Name"], extra)
		}
	}
	if filtered < 2 {
		t.Errorf("%d of %d processes have a system call filter", filtered, len(pids))
	}
}
