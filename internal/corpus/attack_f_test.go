package corpus

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/enclave-run/enclave"
)

// commandLine is a process that has one, as F01 prints it.
var commandLine = regexp.MustCompile(`(?m)^/proc/[0-9]+ \S`)

// processAttacks are group F: other processes, and the namespaces that hide them.
var processAttacks = []attack{
	{
		// A process of the host and one of a neighbour have the flag on their command
		// line.
		id:       "F01",
		language: "bash",
		prepare:  decoys,
		code: `
echo '$ARMED'
ps -ef 2>/dev/null
for p in /proc/[0-9]*; do echo "$p $(tr '\0' ' ' < $p/cmdline)"; done
`,
		judge: func(r *run) []finding {
			// A machine's kernel has threads of its own, which have no command line; a
			// host's come with processes that do.
			n := len(commandLine.FindAllString(r.stdout(), -1))
			if most := 16; n > most {
				return []finding{found(hostLeak, "the workload sees %d processes", n)}
			}
			r.proof("%d processes are seen, of the %d that this host has", n, len(pids()))
			return nil
		},
		breaks:  hostLeak,
		control: onBare(bare{hostProc: true}),
	},
	{
		// The numbers 1 to 399, as the host would count them, and those of the decoys.
		// A control kills the decoys only.
		id:      "F02",
		prepare: decoys,
		code: `
import os, signal
print('$ARMED', flush=True)
n = 0
for p in [$VICTIMS]:
    if p == os.getpid(): continue
    try: os.kill(p, signal.SIGKILL); n += 1
    except OSError: pass
print('KILLED', n)
`,
		ends:    &ends{},
		breaks:  lateral,
		control: onBare(bare{hostProc: true}),
	},
	{
		id:       "F04",
		language: "bash",
		code:     "echo '$ARMED'\nexit 137",
		ends:     &ends{outcome: enclave.Failed},
		judge: func(r *run) []finding {
			if r.result.ExitCode == nil || *r.result.ExitCode != 137 {
				return []finding{found(spoof, "its exit status is %v, not 137", r.result.ExitCode)}
			}
			return nil
		},
		breaks: spoof,
		control: allowing("a workload that is killed for a limit", func(r *run, req *enclave.SessionRequest) {
			req.Code, req.Limits.WallSeconds = "echo '"+r.receipt()+"'\nsleep 100", 3
		}),
	},
	{
		// The host compares: what a workload reads of its namespaces may be made up.
		id:    "F05",
		smoke: true,
		held:  true,
		code: `
import ctypes, os, signal
libc = ctypes.CDLL(None, use_errno=True)
print('$ARMED', flush=True)
for n in ('mnt', 'net', 'pid', 'user', 'ipc', 'uts', 'cgroup'):
    for p in ('1', str(os.getppid()), 'self'):
        try: fd = os.open('/proc/%s/ns/%s' % (p, n), os.O_RDONLY)
        except OSError as e: print(n, p, e.errno); continue
        print(n, p, libc.setns(fd, 0), ctypes.get_errno(), os.readlink('/proc/%s/ns/%s' % (p, n)))
print('$HELD', flush=True); signal.pause()
`,
		judge:   namespacesDiffer,
		breaks:  escape,
		control: onBare(bare{hostProc: true}),
	},
	{
		id:      "F07",
		smoke:   true,
		prepare: abstractPeers,
		code: `
import socket
s = socket.socket(socket.AF_UNIX)
print('$ARMED', flush=True)
try: s.connect('\0enclave-corpus-peer-$NONCE'); s.sendall(b'$NONCE'); print('CONNECTED')
except OSError as e: print(e.errno)
`,
		judge: func(r *run) []finding {
			if strings.Contains(r.stdout(), "CONNECTED") {
				return []finding{found(lateral, "it connected to a socket that is not its own")}
			}
			return nil
		},
		ends:    &ends{},
		breaks:  lateral,
		control: onBare(bare{network: true}),
	},
}

// decoys starts a process of this host and, beside an attack, a sandbox with one
// that has the flag on its command line. $VICTIMS is all that the attack should
// kill.
func decoys(r *run) error {
	host := exec.Command("sleep", "600")
	host.Args[0] = "sleep-" + r.flag
	host.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := host.Start(); err != nil {
		return fmt.Errorf("start a decoy: %w", err)
	}
	died := make(chan struct{})
	go func() { _ = host.Wait(); close(died) }()
	r.cleanup(func() { _ = host.Process.Kill(); <-died })
	r.afterwards(func() {
		select {
		case <-died:
			r.find(lateral, "a process of the host was killed")
		default:
			r.proof("the process of the host lives")
		}
	})
	victims := []string{strconv.Itoa(host.Process.Pid)}
	if !r.bare {
		err := r.neighbour(enclave.SessionRequest{Language: "bash", Code: "echo ready; exec -a sleep-" + r.flag + " sleep 600"})
		if err != nil {
			return err
		}
		for _, t := range tasksIn("/" + r.world.instance + "-") {
			victims = append(victims, strconv.Itoa(t.pid))
		}
		for p := range 399 {
			victims = append(victims, strconv.Itoa(p+1))
		}
	}
	r.vars = append(r.vars, "$VICTIMS", strings.Join(victims, ", "))
	return nil
}

// neighbour starts a session that lives beside the run's, and returns once it has
// written something. It must still run when the attack has ended.
func (r *run) neighbour(req enclave.SessionRequest) error {
	ctx := context.Background()
	h, err := r.world.client.Run(ctx, req)
	if err != nil {
		return fmt.Errorf("start a neighbour: %w", err)
	}
	r.afterwards(func() {
		s, err := h.Refresh(ctx)
		if err != nil || s.Phase != enclave.Running {
			r.find(lateral, "the neighbour is %s, error %v", s.Phase, err)
		}
		r.proof("the neighbour runs")
		if err := h.Teardown(ctx); err != nil {
			r.find(infra, "tear the neighbour down: %v", err)
		}
	})
	following, stop := context.WithCancel(ctx)
	defer stop()
	for e, err := range h.Stream(following) {
		if err != nil {
			return fmt.Errorf("follow the neighbour: %w", err)
		}
		if e.Kind == enclave.StreamStdout {
			return nil
		}
	}
	return errors.New("the neighbour has ended before it ran")
}

// shared are the namespaces that a sandbox's processes have in common with this
// host, by backend: those of users, where each sandbox has a uid of its own instead.
// For a container, which has nothing else between itself and the host's kernel, that
// is one reason why it is no security boundary.
var shared = map[string][]string{"docker": {"user"}, "qemu": {"user"}}

// outside is the program that serves the API and the vsock of a QEMU machine: it
// makes the namespace of pids for QEMU, and is its parent.
const outside = "enclave vmm-qemu inside"

// namespacesDiffer judges F05.
func namespacesDiffer(r *run) (all []finding) {
	if len(r.tasks) == 0 {
		return []finding{found(vacuous, "the sandbox has no process on this host")}
	}
	checked := 0
	for _, kind := range []string{"mnt", "net", "pid", "ipc", "uts", "user"} {
		host, err := os.Readlink("/proc/self/ns/" + kind)
		if err != nil {
			return []finding{found(infra, "%v", err)}
		}
		for _, t := range r.tasks {
			if r.bare && kind == "user" || slices.Contains(shared[r.world.kernel.name], kind) || kind == "pid" && strings.HasPrefix(t.cmd, outside) {
				continue
			}
			checked++
			if t.ns[kind] == host {
				all = append(all, found(escape, "process %d (%.60s) has the host's %s namespace", t.pid, t.cmd, kind))
			}
		}
	}
	r.proof("%d namespaces of %d processes are not the host's", checked, len(r.tasks))
	return all
}

// abstractPeers has this host and, beside an attack, a neighbour listen on the
// abstract socket that the attack connects to.
func abstractPeers(r *run) error {
	l, err := net.Listen("unix", "@enclave-corpus-peer-"+r.nonce)
	if err != nil {
		return err
	}
	r.serve(l, func(net.Conn) { r.find(lateral, "the sandbox connected to a socket of the host") })
	if r.bare {
		return nil
	}
	return r.neighbour(enclave.SessionRequest{Code: `
import socket
l = socket.socket(socket.AF_UNIX); l.bind('\0enclave-corpus-peer-` + r.nonce + `'); l.listen()
print('LISTENING', flush=True)
l.accept()
`})
}
