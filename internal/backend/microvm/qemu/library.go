package qemu

import (
	"cmp"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// program is the name of the QEMU that emulates this host's processor.
const program = "qemu-system-x86_64"

// Find returns the absolute path of QEMU: of the program name, which is a path or
// is on PATH, or for an empty one of the QEMU for this host's processor. Where
// there is none the error says how to get one.
func Find(name string) (string, error) {
	if runtime.GOARCH != "amd64" {
		return "", fmt.Errorf("QEMU's microvm machine is for x86-64, and this host is %s", runtime.GOARCH)
	}
	path, err := exec.LookPath(cmp.Or(name, program))
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return "", fmt.Errorf("QEMU is missing: apt-get install qemu-system-x86, or name its program with ENCLAVE_QEMU: %w", err)
	}
	return path, nil
}

// files are those of the host that QEMU needs, by their paths in the jail.
type files map[string]string

// needs returns what the program at path needs to run: itself, its interpreter,
// the libraries that the interpreter would load and the module of an accelerator.
// Whole directories such as /usr/lib would be simpler, and would put every program
// of the host's within the reach of who breaks out of QEMU. Nothing is started but
// the interpreter, which is root's as the program is.
func needs(path string, accel Accel) (files, error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%s is not a program: %w", path, err)
	}
	defer f.Close()
	all := files{path: path}
	interpreter := ""
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			b := make([]byte, min(p.Filesz, 4096))
			if _, err := p.ReadAt(b, 0); err != nil {
				return nil, fmt.Errorf("read the interpreter of %s: %w", path, err)
			}
			interpreter = strings.TrimRight(string(b), "\x00")
		}
	}
	if interpreter == "" {
		return all, nil // static
	}
	all[interpreter] = interpreter
	cmd := exec.Command(interpreter, "--list", path)
	cmd.Env = []string{}
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("list the libraries of %s: %w", path, withWords(err))
	}
	var dirs []string
	for line := range strings.Lines(string(out)) {
		// "	libz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x00007f…)"
		_, rest, ok := strings.Cut(line, " => ")
		lib, _, _ := strings.Cut(rest, " (")
		if !ok || !filepath.IsAbs(lib) {
			if strings.Contains(line, "not found") {
				return nil, fmt.Errorf("%s lacks a library: %s", path, strings.TrimSpace(line))
			}
			continue
		}
		all[lib] = lib
		if d := filepath.Dir(lib); !slices.Contains(dirs, d) {
			dirs = append(dirs, d)
		}
	}
	if accel == TCG { // a module in some distributions
		for _, d := range dirs {
			m := filepath.Join("/usr", strings.TrimPrefix(d, "/usr"), "qemu", "accel-tcg-x86_64.so")
			if _, err := os.Stat(m); err == nil {
				all[m] = m
			}
		}
	}
	// Where the interpreter looks for libraries that are in none of its own places.
	const cache = "/etc/ld.so.cache"
	if _, err := os.Stat(cache); err == nil {
		all[cache] = cache
	}
	return all, nil
}

// withWords adds to the error of a program what it said last.
func withWords(err error) error {
	var e *exec.ExitError
	if errors.As(err, &e) {
		lines := strings.Split(strings.TrimSpace(string(e.Stderr)), "\n")
		if last := strings.TrimSpace(lines[len(lines)-1]); last != "" {
			return fmt.Errorf("%w: %.300s", err, last)
		}
	}
	return err
}

// firmware adds to all what of QEMU's firmware a microvm uses, and returns the
// name of the one to start with. qboot is the smallest that loads a PVH kernel.
func (all files) firmware() (name string, err error) {
	dirs := []string{"/usr/share/qemu", "/usr/share/seabios", "/usr/share/qboot", "/usr/share/qemu-firmware", "/usr/share/edk2/qboot"}
	for _, want := range []string{"qboot.rom", "bios-microvm.bin", "pvh.bin", "kvmvapic.bin"} {
		for _, d := range dirs {
			path, err := filepath.EvalSymlinks(filepath.Join(d, want))
			if err != nil {
				continue
			}
			all[filepath.Join(firmwareDir, want)] = path
			if name == "" && (want == "qboot.rom" || want == "bios-microvm.bin") {
				name = want
			}
			break
		}
	}
	if name == "" {
		return "", fmt.Errorf("there is no firmware for QEMU's microvm (qboot.rom or bios-microvm.bin) in %s: apt-get install qemu-system-data seabios", strings.Join(dirs, ", "))
	}
	return name, nil
}
