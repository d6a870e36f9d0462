// Command enclave-runsc is gVisor's runtime, carried inside enclave. It takes
// the commands and flags of runsc that a sandbox's life needs, and leaves out
// the others with the programs they embed (48 of 83 MB).
//
// It must be a static binary: it executes itself inside an empty root.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"time"

	"gvisor.dev/gvisor/runsc/cli"
	"gvisor.dev/gvisor/runsc/cmd"
	"gvisor.dev/gvisor/runsc/cmd/sentry/sentrycmd"
	"gvisor.dev/gvisor/runsc/cmd/util"
)

const (
	// cgroupsEnv names cgroup directories, separated by colons, that the process
	// joins before it does anything else, so that every process of the sandbox is
	// born in them.
	cgroupsEnv = "ENCLAVE_CGROUPS"

	// openEnv names directories, separated by colons, that the sandbox's
	// unprivileged processes must reach. Whoever sets it has given this process a
	// mount namespace of its own.
	openEnv = "ENCLAVE_OPEN"
)

func main() {
	if err := prepare(); err != nil {
		fmt.Fprintln(os.Stderr, "enclave-runsc:", err)
		os.Exit(128)
	}
	// runsc clears the environment of what it starts, GOGC with it.
	if slices.Contains(os.Args, "gofer") {
		settle()
	}
	if slices.Contains(os.Args, "boot") {
		collectLater()
		settle()
		if err := tellMemory(os.Args); err != nil {
			fmt.Fprintln(os.Stderr, "enclave-runsc:", err)
			os.Exit(128)
		}
	}
	cli.Run(nil, map[util.SubCommand]string{
		new(cmd.Create):       "",
		new(cmd.Delete):       "",
		new(cmd.Events):       "",
		new(cmd.Exec):         "",
		new(cmd.Kill):         "",
		new(cmd.List):         "",
		new(cmd.PS):           "",
		new(cmd.Run):          "",
		new(cmd.Spec):         "",
		new(cmd.Start):        "",
		new(cmd.State):        "",
		new(cmd.Wait):         "",
		new(cmd.Debug):        "debug",
		new(sentrycmd.Boot):   "internal use only",
		new(cmd.Gofer):        "internal use only",
		new(sentrycmd.Umount): "internal use only",
	}, nil)
}

// prepare does what the environment asks for, and takes it out of there.
func prepare() error {
	if dirs := os.Getenv(cgroupsEnv); dirs != "" {
		if err := join(filepath.SplitList(dirs)); err != nil {
			return err
		}
		os.Unsetenv(cgroupsEnv)
	}
	if dirs := os.Getenv(openEnv); dirs != "" {
		if err := reach(filepath.SplitList(dirs)); err != nil {
			return err
		}
		os.Unsetenv(openEnv)
	}
	return nil
}

// join moves this process into each cgroup.
func join(dirs []string) error {
	for _, d := range dirs {
		// 0 is whoever writes it.
		f, err := os.OpenFile(filepath.Join(d, "cgroup.procs"), os.O_WRONLY, 0)
		if err != nil {
			return fmt.Errorf("join cgroup: %w", err)
		}
		_, err = f.WriteString("0")
		f.Close()
		if err != nil {
			return fmt.Errorf("join cgroup %s: %w", d, err)
		}
	}
	return nil
}

const (
	// bootPercent lets the heap grow to 16 MiB, which is more than a boot needs,
	// before it is collected for the first time.
	bootPercent = 400
	// runPercent keeps the heap of a sandbox that has booted small.
	runPercent = 50
	// settleTime is when a sandbox has booted and its work has begun.
	settleTime = time.Second
)

// collectLater keeps the garbage collector out of a sandbox's boot, and from its
// first run on has it collect early: boots are counted in milliseconds, idle
// sandboxes in megabytes.
func collectLater() {
	debug.SetGCPercent(bootPercent)
	first := new([16]byte)
	runtime.SetFinalizer(first, func(*[16]byte) { debug.SetGCPercent(runPercent) })
}

// settle collects once after the start and gives back to the host what the start
// took: most of the heap of a process that idles from then on. A sandbox that
// ends sooner does not pay for it.
func settle() {
	time.AfterFunc(settleTime, debug.FreeOSMemory)
}
