package doctor

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/enclave-run/enclave/internal/safepath"
)

func (h *host) lookAtFirecracker(ctx context.Context, c Config) {
	h.kvm = learn(lookAtKVM("/dev/kvm"))
	h.monitors = learn(findMonitors(ctx, c.Firecracker, c.Jailer))
	h.smt = learn(lookAtSMT("/sys/devices/system/cpu/smt/active"))
	h.ksm = learn(setting("/sys/kernel/mm/ksm/run", 0))
	h.swap = learn(swapsTo("/proc/swaps"))
	h.weak = learn(weaknesses("/sys/devices/system/cpu/vulnerabilities"))
}

func lookAtKVM(path string) (device, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return device{missing: true}, nil
	}
	if err != nil {
		return device{}, err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err == nil {
		err = f.Close()
	}
	return device{mode: info.Mode(), opens: err}, nil
}

// findMonitors looks at those of Firecracker's programs that are there.
func findMonitors(ctx context.Context, firecracker, jailer string) ([]monitor, error) {
	var all []monitor
	for _, m := range []monitor{{name: "firecracker", path: firecracker}, {name: "jailer", path: jailer}} {
		path, err := exec.LookPath(m.path)
		if err != nil {
			continue
		}
		if m.path, err = filepath.Abs(path); err != nil {
			return nil, err
		}
		_, m.untrusted = safepath.File(m.path)
		if m.static, err = static(m.path); err != nil {
			return nil, fmt.Errorf("look at %s: %w", m.path, err)
		}
		m.version = "unknown"
		if v := versionText.FindStringSubmatch(say(ctx, m.path, "--version")); v != nil {
			m.version = v[1]
		}
		all = append(all, m)
	}
	return all, nil
}

// static reports whether a program asks for no loader.
func static(path string) (bool, error) {
	f, err := elf.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	return !slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }), nil
}

func lookAtSMT(path string) (bool, error) {
	n, err := setting(path, 0)
	return n == 1, err
}

// swapsTo lists where the kernel swaps to: the lines of proc_swaps(5) but the first.
func swapsTo(path string) ([]string, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // built without
	}
	if err != nil {
		return nil, err
	}
	var all []string
	for i, line := range strings.Split(strings.TrimSpace(string(b)), "\n") {
		if f := strings.Fields(line); i > 0 && len(f) > 0 {
			all = append(all, f[0])
		}
	}
	return all, nil
}

// weaknesses lists the flaws of the CPU of which the kernel says that they are open,
// wait for microcode, or are open where threads share a core.
func weaknesses(dir string) ([]string, error) {
	return flaws(dir, func(s string) bool {
		l := strings.ToLower(s)
		return strings.HasPrefix(l, "vulnerable") || strings.Contains(l, "smt vulnerable") || strings.Contains(l, "no microcode")
	})
}
