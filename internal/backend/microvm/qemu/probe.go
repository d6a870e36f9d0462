package qemu

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	// probeTime is how long a guest may take that shows no sign of life.
	probeTime = time.Second

	// aliveTime is how long one may take that does: a busy host is not one
	// without virtualisation.
	aliveTime = 5 * time.Second

	// oldest is QEMU's first major version that this package was tried with.
	oldest = 7

	probeFile = ".qemu-probe.json"
)

// A Probe is what this host has for machines under QEMU.
type Probe struct {
	Path    string // of QEMU
	Version string // of QEMU, of the form 7.2.22
	KVM     bool   // a guest was seen to boot with it
	Why     string // without KVM: what is missing, in words
}

// remembered is a Probe and what it holds for: until the host boots again, or
// QEMU, the kernel or the device changes.
type remembered struct {
	Boot, QEMU, Kernel, Device string
	Probe
}

// Look says what this host has: with the QEMU that Find finds for program, and with
// the guest kernel at kernel, an uncompressed one. It boots a guest
// with KVM for a second if /dev/kvm opens, because one that opens may boot
// nothing, and remembers the answer in the directory stateDir. It returns an error
// if there is no QEMU to work with; without KVM there is emulation.
func Look(ctx context.Context, stateDir, program, kernel string) (Probe, error) {
	path, err := Find(program)
	if err != nil {
		return Probe{}, err
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return Probe{}, fmt.Errorf("find QEMU: %w", err)
	}
	now := remembered{Probe: Probe{Path: path}}
	if err := now.identify(kernel); err != nil {
		return Probe{}, err
	}
	file := filepath.Join(stateDir, probeFile)
	if then, err := recall(file); err == nil && then.same(now) {
		return then.Probe, nil
	}
	if now.Version, err = version(ctx, path); err != nil {
		return Probe{}, err
	}
	if now.Why, err = tryKVM(ctx, path, kernel); err != nil {
		return Probe{}, err
	}
	now.KVM = now.Why == ""
	if err := now.save(file); err != nil {
		return Probe{}, fmt.Errorf("remember what QEMU can do here: %w", err)
	}
	return now.Probe, nil
}

// identify fills in what r holds for.
func (r *remembered) identify(kernel string) error {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	r.Boot = strings.TrimSpace(string(boot))
	if r.QEMU, err = identity(r.Path); err != nil {
		return fmt.Errorf("find QEMU: %w", err)
	}
	if r.Kernel, err = identity(kernel); err != nil {
		return fmt.Errorf("find the guest's kernel: %w", err)
	}
	if r.Device, err = identity(kvmDevice); errors.Is(err, fs.ErrNotExist) {
		r.Device, err = "none", nil
	}
	return err
}

const kvmDevice = "/dev/kvm"

// identity tells a file from every other and from itself after a change.
func identity(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	st := info.Sys().(*syscall.Stat_t)
	return fmt.Sprintf("%s %d:%d %o %d %d.%d", path, st.Dev, st.Ino, st.Mode, st.Size, st.Ctim.Sec, st.Ctim.Nsec), nil
}

func (r remembered) same(as remembered) bool {
	return r.Boot == as.Boot && r.QEMU == as.QEMU && r.Kernel == as.Kernel && r.Device == as.Device
}

func recall(file string) (r remembered, err error) {
	f, err := os.Open(file)
	if err != nil {
		return r, err
	}
	defer f.Close()
	d := json.NewDecoder(io.LimitReader(f, 64<<10))
	d.DisallowUnknownFields()
	return r, d.Decode(&r)
}

func (r remembered) save(file string) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(file), probeFile+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // unless it was renamed
	_, err = f.Write(b)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), file)
}

var versionWords = regexp.MustCompile(`^QEMU emulator version (([0-9]+)\.[0-9]+\.[0-9]+)`)

// version asks the QEMU at path which it is, and refuses one that is too old.
func version(ctx context.Context, path string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "--version")
	cmd.Env = []string{}
	cmd.WaitDelay = time.Second
	var words tail
	cmd.Stderr = &words
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s does not work: %w%s", path, err, prefixed(": ", words.lines(1, "")))
	}
	m := versionWords.FindSubmatch(out)
	if m == nil {
		line, _, _ := bytes.Cut(out, []byte("\n"))
		return "", fmt.Errorf("%s does not say that it is QEMU, but %.100q", path, line)
	}
	if major, err := strconv.Atoi(string(m[2])); err != nil || major < oldest {
		return "", fmt.Errorf("%s is QEMU %s, which is too old: %d.0 or later is needed", path, m[1], oldest)
	}
	return string(m[1]), nil
}

// tryKVM boots kernel with hardware virtualisation. It returns why that is not to
// be had, or nothing. What runs is our own kernel with nothing on top, so that it
// needs no jail: it ends with the panic of a kernel that finds no root.
func tryKVM(ctx context.Context, path, kernel string) (why string, err error) {
	f, err := os.OpenFile(kvmDevice, os.O_RDWR, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "there is no /dev/kvm: this host has no hardware virtualisation, or its module (kvm_intel, kvm_amd) is not loaded", nil
	case err != nil:
		return fmt.Sprintf("/dev/kvm does not open: %v", errors.Unwrap(err)), nil
	}
	f.Close()

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, path,
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-sandbox", ownFilter, "-M", Board,
		"-accel", "kvm", "-cpu", "host", "-smp", "1", "-m", "128M",
		"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
		"-kernel", kernel, "-append", "console=ttyS0 8250.nr_uarts=1 loglevel=4 reboot=t panic=-1")
	cmd.Env = []string{}
	cmd.WaitDelay = time.Second
	var console, words tail
	cmd.Stdout, cmd.Stderr = &console, &words
	began := time.Now()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	done := make(chan error, 1)
	go func() {
		// The signal comes with the death of the thread (golang.org/issue/27505).
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		done <- cmd.Run()
	}()
	for limit := probeTime; ; limit = aliveTime {
		select {
		case err = <-done:
		case <-time.After(time.Until(began.Add(limit))):
			if limit == probeTime && console.lines(1, "") != "" {
				continue
			}
			cancel()
			<-done
			return fmt.Sprintf("/dev/kvm opens but boots no guest in %s", limit), nil
		case <-ctx.Done():
			<-done
			return "", context.Cause(ctx)
		}
		break
	}
	if err == nil && strings.Contains(console.lines(100, "\n"), "VFS: Unable to mount root") {
		return "", nil
	}
	last := words.lines(2, " | ")
	if last == "" {
		last = console.lines(1, "")
	}
	return "/dev/kvm opens but boots no guest" + prefixed(": ", last), nil
}
