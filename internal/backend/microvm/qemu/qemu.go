// Package qemu runs one virtual machine with QEMU's microvm machine type and
// serves Firecracker's API for it, so that what drives Firecracker drives this,
// unchanged. It does so in a process of its own, which jails itself and QEMU
// before either reads a byte of what it is given.
//
// It refuses what it can't do as Firecracker refuses what is wrong: settings that
// it does not know are never ignored. It gives no machine a network card, a
// snapshot, or a second processor.
package qemu

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
)

// An Accel is how the guest's instructions are executed.
type Accel string

// The accelerators.
const (
	KVM Accel = "kvm" // by the processor, in hardware virtualisation
	TCG Accel = "tcg" // by translation: not a security boundary (QEMU's own word)
)

// Version is the vmm_version that the API reports: of no Firecracker.
const Version = "0.0.0-qemu"

// Command is the word by which a program is a VMM process: one whose first argument
// it is calls Main with the others. A VMM starts its own program again so, in its
// jail.
const Command = "vmm-qemu"

// Words that follow Command where the program starts itself again: as the VMM in
// its jail, and there as what becomes QEMU.
const (
	stageInside = "inside"
	stageLaunch = "launch"
)

// options are the command line of the VMM process.
type options struct {
	ID       string // Firecracker's rule: letters, digits and -, at most 64
	Root     string // the directory that has the machine's files: see Main
	UID, GID int
	Accel    Accel
	QEMU     string   // path of qemu-system-x86_64
	Groups   []string // directories of the machine's control group, one for each hierarchy
	OOMScore int      // of its processes, up to 1000, the first that a host without memory kills; 0 is that of who starts it
}

// Main is the VMM process. It is started as root, with
//
//	vmm-qemu --id ID --root DIR --uid N --gid N --accel kvm|tcg --qemu PATH [--cgroup DIR]... [--oom-score N]
//
// and its standard error is where it explains itself. It enters each control group
// before anything else, and QEMU with it. The root DIR belongs to root, and has
// vmlinux, initrd and disk.erofs, readable to uid N, and the sockets v.sock_PORT.
// Nobody but root can reach DIR/api.sock, which Main makes, and neither it nor QEMU
// can change anything in DIR. Paths in API calls are relative to DIR; of the
// guest's console the last 16 KiB are in DIR/serial once PUT /serial names /serial.
//
// Main returns nil after a guest that shut down or reset itself, and an error in
// all other cases. When the process dies, QEMU does.
func Main(args []string) error {
	if len(args) > 0 {
		switch args[0] {
		case stageInside:
			return mainInside(args[1:])
		case stageLaunch:
			return mainLaunch()
		}
	}
	o, err := parse(args)
	if err != nil {
		return fmt.Errorf("vmm-qemu: %w", err)
	}
	return fmt.Errorf("vmm-qemu: %w", enter(o)) // it returns only to fail
}

var validID = regexp.MustCompile(`^[A-Za-z0-9-]{1,64}$`)

func parse(args []string) (options, error) {
	var o options
	f := flag.NewFlagSet(Command, flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.StringVar(&o.ID, "id", "", "")
	f.StringVar(&o.Root, "root", "", "")
	f.IntVar(&o.UID, "uid", 0, "")
	f.IntVar(&o.GID, "gid", 0, "")
	f.StringVar((*string)(&o.Accel), "accel", "", "")
	f.StringVar(&o.QEMU, "qemu", "", "")
	f.Func("cgroup", "", func(s string) error { o.Groups = append(o.Groups, s); return nil })
	f.IntVar(&o.OOMScore, "oom-score", 0, "")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	switch {
	case f.NArg() > 0:
		return o, fmt.Errorf("%q is not an option", f.Arg(0))
	case !validID.MatchString(o.ID):
		return o, fmt.Errorf("--id %q is not 1 to 64 letters, digits and hyphens", o.ID)
	case !filepath.IsAbs(o.Root):
		return o, fmt.Errorf("--root %q is not an absolute path", o.Root)
	case o.UID <= 0 || o.GID <= 0:
		return o, errors.New("--uid and --gid are required, and are not root's")
	case slices.ContainsFunc(o.Groups, func(d string) bool { return !filepath.IsAbs(d) }):
		return o, fmt.Errorf("--cgroup %q are not all absolute paths", o.Groups)
	case o.OOMScore < 0 || o.OOMScore > 1000:
		return o, fmt.Errorf("--oom-score %d is not between 0 and 1000", o.OOMScore)
	case o.Accel != KVM && o.Accel != TCG:
		return o, fmt.Errorf("--accel %q is neither kvm nor tcg", o.Accel)
	case !filepath.IsAbs(o.QEMU):
		return o, fmt.Errorf("--qemu %q is not an absolute path", o.QEMU)
	case os.Geteuid() != 0:
		return o, errors.New("it needs root, to make a jail and leave root behind")
	}
	return o, nil
}

// inside is what the jailed process is told: what it can't find out for itself,
// and which descriptors it was given.
type inside struct {
	ID       string
	Accel    Accel
	QEMU     string // in the jail
	Firmware string // the name of the firmware in the jail's firmware directory, or empty
	TSC      int64  // kHz of the processor's time stamp counter; 0 with KVM
	Child    int    // process id of the launcher, which becomes QEMU

	API     int // listens at DIR/api.sock
	Vsock   int // listens at DIR/v.sock
	Serial  int // DIR/serial
	Control int // to the launcher: the command line
	Monitor int // QMP
	Console int // the guest's serial console
	Device  int // vhost-user
	Words   int // QEMU's standard error
}

func mainInside(args []string) error {
	var in inside
	if len(args) != 1 {
		return errors.New("vmm-qemu: started by hand")
	}
	if err := json.Unmarshal([]byte(args[0]), &in); err != nil {
		return fmt.Errorf("vmm-qemu: read what the process is for: %w", err)
	}
	if err := confine(in.Child); err != nil {
		return fmt.Errorf("vmm-qemu: confine: %w", err)
	}
	if err := in.run(); err != nil {
		return fmt.Errorf("vmm-qemu: %w", err)
	}
	return nil
}
