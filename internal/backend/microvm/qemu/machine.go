package qemu

import (
	"fmt"
	"os"
	"path"
	"regexp"
	"strconv"

	"github.com/enclave-run/enclave/internal/backend/microvm/firecracker"
	"github.com/enclave-run/enclave/internal/backend/microvm/kernel"
)

// Where things are in the jail.
const (
	vmDir       = "/vm"       // the machine's files, read-only
	firmwareDir = "/firmware" // of QEMU
	selfPath    = "/vmm"      // this program
)

// Descriptors of the QEMU process.
const (
	controlFD = 3 + iota // the launcher's, closed when it becomes QEMU
	monitorFD
	consoleFD
	deviceFD
)

const (
	maxMemMiB   = 1 << 20 // a typing error, more likely than a machine
	maxBootArgs = 2047    // COMMAND_LINE_SIZE of x86 without its final zero

	// translated is how much memory QEMU's own translations of guest code may
	// take, in MiB. Its default of up to 1 GiB would be the guest's to fill,
	// outside of what it was given.
	translated = 128
)

const (
	// Board is the machine that QEMU is told to be (-M): with ACPI, as Firecracker
	// has; with an RTC, without which Linux waits for one for 1.1 s; and without an
	// option ROM, since the firmware loads a PVH kernel by itself.
	Board = "microvm,acpi=on,pit=off,pic=off,rtc=on,isa-serial=on,x-option-roms=off,auto-kernel-cmdline=off"

	// ownFilter is QEMU's filter of system calls, with all that it can deny.
	ownFilter = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
)

// A machine is what was configured by calls of the API. Its zero value is a
// machine of Firecracker's default size with nothing to boot.
type machine struct {
	config *firecracker.MachineConfig
	boot   *firecracker.BootSource
	drive  *firecracker.Drive
	vsock  *firecracker.Vsock
	rng    bool
}

var fileName = regexp.MustCompile(`^/[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// inVM returns where the jail has the file that an API call names p. Names are of
// a few letters: QEMU's options give commas and equal signs a meaning.
func inVM(p string) (string, error) {
	if !fileName.MatchString(p) {
		return "", fmt.Errorf("%q is not a file of this machine's directory, such as /vmlinux", p)
	}
	real := path.Join(vmDir, p)
	info, err := os.Lstat(real)
	if err != nil {
		return "", fmt.Errorf("%s: %w", p, err.(*os.PathError).Err)
	}
	if !info.Mode().IsRegular() {
		return "", fmt.Errorf("%s is not a regular file", p)
	}
	f, err := os.Open(real)
	if err != nil {
		return "", fmt.Errorf("%s: %w", p, err.(*os.PathError).Err)
	}
	f.Close()
	return real, nil
}

// checkKernel refuses a file that QEMU would not boot, or would with no word.
func checkKernel(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return kernel.Check(f, info.Size())
}

// memory is the machine's size in MiB.
func (m *machine) memory() int64 {
	if m.config == nil {
		return 128 // Firecracker's default
	}
	return m.config.MemSizeMiB
}

// argv is QEMU's command line for m, whose boot source is set. It reads nothing
// but what it is given.
func (m *machine) argv(in inside) []string {
	memory := strconv.FormatInt(m.memory(), 10) + "M"
	a := []string{
		in.QEMU,
		"-nodefaults", "-no-user-config", "-display", "none",
		// A guest that resets itself has ended, as with Firecracker.
		"-no-reboot",
		"-sandbox", ownFilter,
		"-M", Board + ",memory-backend=ram",
		"-global", "virtio-mmio.force-legacy=false",
		// Shared, because the vsock device is in another process; sealed by default,
		// so that nobody can make it shorter under the other's hands.
		"-object", "memory-backend-memfd,id=ram,size=" + memory + ",share=on",
		"-m", memory, "-smp", "1",
		"-L", firmwareDir,
	}
	if in.Firmware != "" {
		a = append(a, "-bios", in.Firmware)
	}
	if in.Accel == KVM {
		a = append(a, "-accel", "kvm", "-cpu", "host")
	} else {
		a = append(a, "-accel", "tcg,thread=multi,tb-size="+strconv.Itoa(translated), "-cpu", "max")
	}
	fd := func(n int) string { return strconv.Itoa(n) }
	a = append(a,
		"-chardev", "socket,id=monitor,fd="+fd(monitorFD), "-mon", "chardev=monitor,mode=control",
		"-chardev", "socket,id=console,fd="+fd(consoleFD), "-serial", "chardev:console",
		"-kernel", path.Join(vmDir, m.boot.KernelImagePath),
	)
	if m.boot.InitrdPath != "" {
		a = append(a, "-initrd", path.Join(vmDir, m.boot.InitrdPath))
	}
	a = append(a, "-append", m.cmdline(in))
	if m.drive != nil {
		a = append(a,
			"-drive", "if=none,id=drive,format=raw,read-only=on,file="+path.Join(vmDir, m.drive.PathOnHost),
			"-device", "virtio-blk-device,drive=drive")
	}
	if m.rng {
		a = append(a, "-object", "rng-builtin,id=entropy", "-device", "virtio-rng-device,rng=entropy")
	}
	if m.vsock != nil {
		a = append(a, "-chardev", "socket,id=vsock,fd="+fd(deviceFD), "-device", "vhost-user-vsock-device,chardev=vsock")
	}
	return a
}

// cmdline is the kernel's: what the boot source says, the root device as
// Firecracker adds it, and under emulation the rate of the time stamp counter,
// which is the host's there and which a kernel without KVM's clock can't measure
// on a busy host.
func (m *machine) cmdline(in inside) string {
	s := m.boot.BootArgs
	if m.drive != nil && m.drive.IsRootDevice {
		s += " root=/dev/vda ro"
	}
	if in.TSC > 0 {
		s += " no_timer_check tsc=reliable tsc_early_khz=" + strconv.FormatInt(in.TSC, 10)
	}
	return s
}
