package microvm

import (
	"context"
	"fmt"
	"os"
	"strconv"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/local"
	"github.com/enclave-run/enclave/internal/backend/local/watch"
)

// byQEMU launches our own monitor, which serves Firecracker's API over QEMU and
// confines itself.
type byQEMU struct {
	shim []string // the program and the command in it
	qemu string
	kvm  bool // a guest has been seen to boot with it; else the processor is emulated
	// lacks is why it is emulated, in words.
	lacks string
	at    int // how many machines boot at once without slowing each other
}

func (l byQEMU) info() backend.Info {
	i := backend.Info{Name: "qemu", Isolation: backend.Emulated, Starting: l.at}
	if l.kvm {
		i.Isolation = backend.MicroVM
	}
	return i
}

// cost has room for the code that emulation translates, which QEMU is told to
// keep to 128 MiB.
func (byQEMU) cost() cost { return cost{memory: 384 << 20, tasks: 128} }

func (byQEMU) home() string { return "vmm" }

// mode lets the machine's user connect to the sockets there, and change nothing.
func (byQEMU) mode() (os.FileMode, bool) { return 0o711, false }

func (byQEMU) serial() string { return "serial" }

// arguments make a guest under emulation boot faster: there is no speculation to
// guard against, and nothing learns addresses from a processor that is a program.
// A triple fault is how this machine is turned off.
func (l byQEMU) arguments() string {
	if l.kvm {
		return "reboot=t"
	}
	return "reboot=t mitigations=off nokaslr"
}

// argv is the command line of one machine's monitor.
func (l byQEMU) argv(m machine) []string {
	accel := "tcg"
	if l.kvm {
		accel = "kvm"
	}
	user := strconv.FormatUint(uint64(m.user), 10)
	argv := append([]string(nil), l.shim...)
	argv = append(argv, "--id", m.id, "--root", m.root, "--uid", user, "--gid", user, "--accel", accel, "--qemu", l.qemu,
		"--oom-score", strconv.Itoa(local.OOMScore()))
	for _, dir := range m.dirs {
		argv = append(argv, "--cgroup", dir)
	}
	return argv
}

func (l byQEMU) launch(_ context.Context, m machine) (*vmm, error) {
	v, cmd, err := spawn(l.argv(m), 0)
	if err != nil {
		return nil, fmt.Errorf("start the machine monitor: %w", err)
	}
	at, err := watch.StartTime(cmd.Process.Pid)
	if err != nil {
		<-v.ended
		return nil, v.why(v.died(), "")
	}
	v.process = watch.Process{PID: cmd.Process.Pid, StartTime: at}
	return v, nil
}
