package kernel

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"regexp"
	"slices"
	"strings"
)

// wanted are the modules that a guest needs, in the order in which they are
// loaded: the bus, the host's stream, the disk, the file system of the image, the
// sandbox's interface, and the host's random numbers.
var wanted = []string{"virtio_mmio", "vmw_vsock_virtio_transport", "virtio_blk", "erofs", "tun", "virtio_rng"}

// isModule is the name of a module, as files are named by and terminals shown.
var isModule = regexp.MustCompile(`^[0-9A-Za-z_]{1,55}$`) // MODULE_NAME_LEN of linux/moduleparam.h

// moduleName is how the kernel calls the module in a file of this name: with
// underscores, and without what the file is compressed with, which comes second.
func moduleName(base string) (name, suffix string, ok bool) {
	for _, suffix := range []string{"", ".xz", ".zst", ".gz"} {
		if name, ok := strings.CutSuffix(base, ".ko"+suffix); ok && name != "" {
			return strings.ReplaceAll(name, "-", "_"), suffix, true
		}
	}
	return "", "", false
}

// depends returns the modules that this one, an ELF file, needs.
func depends(name string, module []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		return nil, refuse("module %s is no ELF file: %v", name, err)
	}
	s := f.Section(".modinfo")
	if s == nil || s.Size > 1<<20 {
		return nil, refuse("module %s does not say what it needs", name)
	}
	info, err := s.Data()
	if err != nil {
		return nil, refuse("module %s: %v", name, err)
	}
	for field := range bytes.SplitSeq(info, []byte{0}) {
		list, ok := bytes.CutPrefix(field, []byte("depends="))
		if !ok {
			continue
		}
		if len(list) == 0 {
			return nil, nil
		}
		needs := strings.Split(strings.ReplaceAll(string(list), "-", "_"), ",")
		for _, n := range needs {
			if !isModule.MatchString(n) {
				return nil, refuse("module %s needs %.100q, which is no module's name", name, n)
			}
		}
		return needs, nil
	}
	return nil, refuse("module %s does not say what it needs", name)
}

// unsigned returns a module without the signature that a kernel's build appends. The
// guest gets its modules from the host with its kernel and can load no other: to
// check eleven signatures costs a tenth of a boot under emulation and protects nobody.
func unsigned(module []byte) []byte {
	const (
		magic = "~Module signature appended~\n"
		info  = 12 // struct module_signature, whose last four bytes are the signature's length
	)
	body, ok := bytes.CutSuffix(module, []byte(magic))
	if !ok || len(body) < info {
		return module
	}
	n := uint64(binary.BigEndian.Uint32(body[len(body)-4:]))
	if n > uint64(len(body)-info) {
		return module
	}
	return body[:len(body)-info-int(n)]
}

// resolve returns the wanted modules and what they need, each after what it needs.
// read returns the content of a module, or nil if it is part of the kernel.
func resolve(read func(name string) ([]byte, error)) (order []string, content map[string][]byte, err error) {
	const most = 64 // modules
	left := int64(maxModules)
	content = map[string][]byte{}
	var visit func(name string, chain []string) error
	visit = func(name string, chain []string) error {
		if _, seen := content[name]; seen {
			return nil
		}
		if slices.Contains(chain, name) || len(content)+len(chain) > most {
			return refuse("module %s needs itself, or too many others", name)
		}
		b, err := read(name)
		if err != nil || b == nil {
			return err
		}
		// Each may be far larger than what it is compressed to.
		if left -= int64(len(b)); left < 0 {
			return refuse("the modules that the guest needs have more than %d bytes", maxModules)
		}
		needs, err := depends(name, b)
		if err != nil {
			return err
		}
		for _, n := range needs {
			if err := visit(n, append(chain, name)); err != nil {
				return err
			}
		}
		content[name] = b
		order = append(order, name)
		return nil
	}
	for _, name := range wanted {
		if err := visit(name, nil); err != nil {
			return nil, nil, err
		}
	}
	return order, content, nil
}
