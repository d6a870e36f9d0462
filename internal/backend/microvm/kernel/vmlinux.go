package kernel

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/pierrec/lz4/v4"
)

// vmlinux returns the kernel that a bzImage carries compressed, which must be
// an ELF file for this architecture that starts by PVH. A virtual machine that
// is given it spares the time to decompress it at each boot, and Firecracker takes
// nothing else. See Documentation/x86/boot.rst, "The real-mode kernel header".
func vmlinux(image []byte) ([]byte, error) {
	const (
		setupSects    = 0x1f1
		headerMagic   = 0x202
		version       = 0x206
		payloadOffset = 0x248
		payloadLength = 0x24c
		headerEnd     = 0x250
	)
	if len(image) < headerEnd || string(image[headerMagic:headerMagic+4]) != "HdrS" ||
		binary.LittleEndian.Uint16(image[version:]) < 0x208 {
		return nil, refuse("the kernel is no bzImage of boot protocol 2.08 or later")
	}
	sectors := int64(image[setupSects])
	if sectors == 0 {
		sectors = 4 // boot.rst: for compatibility
	}
	from := (sectors+1)*512 + int64(binary.LittleEndian.Uint32(image[payloadOffset:]))
	to := from + int64(binary.LittleEndian.Uint32(image[payloadLength:]))
	if from > to || to > int64(len(image)) {
		return nil, refuse("the kernel's payload lies outside it")
	}
	payload := image[from:to]
	if len(payload) < 8 {
		return nil, refuse("the kernel has no payload")
	}
	// The size that the build appends bounds what is decompressed.
	size := int64(binary.LittleEndian.Uint32(payload[len(payload)-4:]))
	if size > maxVmlinux {
		return nil, refuse("the kernel has %d bytes, decompressed", size)
	}
	body := payload[:len(payload)-4]
	raw, err := inflate(body, size)
	if err != nil {
		return nil, err
	}
	if int64(len(raw)) != size {
		return nil, refuse("the kernel has %d bytes, decompressed, and says %d", len(raw), size)
	}
	if err := Check(bytes.NewReader(raw), size); err != nil {
		return nil, refuse("the kernel can't be booted: %v", err)
	}
	return raw, nil
}

// inflate decompresses a payload by its first bytes.
func inflate(body []byte, size int64) ([]byte, error) {
	suffix := ""
	switch {
	case bytes.HasPrefix(body, []byte{0x02, 0x21, 0x4c, 0x18}):
		return inflateLZ4(body[4:], size)
	case bytes.HasPrefix(body, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		suffix = ".zst"
	case bytes.HasPrefix(body, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		suffix = ".xz"
	case bytes.HasPrefix(body, []byte{0x1f, 0x8b}):
		suffix = ".gz"
		// gzip has that size as the end of its own format.
		body = body[:len(body)+4]
	default:
		return nil, refuse("the kernel is compressed with what is none of lz4, zstd, xz and gzip")
	}
	r, done, err := decompress(bytes.NewReader(body), suffix, size, "the kernel")
	if err != nil {
		return nil, err
	}
	defer done()
	out := make([]byte, size)
	n, err := io.ReadFull(r, out)
	if err != nil && err != io.ErrUnexpectedEOF && err != io.EOF {
		return nil, err
	}
	return out[:n], nil
}

// inflateLZ4 decompresses the blocks of LZ4's legacy format, each of 8 MiB at most:
// what "lz4 -l" makes, and a kernel's build.
func inflateLZ4(body []byte, size int64) ([]byte, error) {
	const block = 8 << 20
	out := make([]byte, 0, size)
	for len(body) > 0 {
		if len(body) < 4 {
			return nil, refuse("the kernel's payload ends inside a block")
		}
		n := int64(binary.LittleEndian.Uint32(body))
		if body = body[4:]; n > int64(len(body)) {
			return nil, refuse("the kernel's payload ends inside a block")
		}
		room := out[len(out):min(len(out)+block, cap(out))]
		m, err := lz4.UncompressBlock(body[:n], room)
		if err != nil {
			return nil, refuse("decompress the kernel: %v", err)
		}
		out, body = out[:len(out)+m], body[n:]
	}
	return out, nil
}

// Check refuses what neither Firecracker nor QEMU starts as a kernel, or starts
// without a word: r, of size bytes, must be a whole ELF program for x86-64 with an
// entry for PVH.
func Check(r io.ReaderAt, size int64) error {
	magic := make([]byte, len(elf.ELFMAG))
	if _, err := r.ReadAt(magic, 0); err != nil || string(magic) != elf.ELFMAG {
		return errors.New("it is no ELF file, as an uncompressed kernel is")
	}
	f, err := elf.NewFile(r)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("it is cut off")
	}
	if err != nil {
		return err
	}
	if f.Machine != elf.EM_X86_64 || f.Class != elf.ELFCLASS64 {
		return fmt.Errorf("it is for %v, not for x86-64", f.Machine)
	}
	if f.Type != elf.ET_EXEC {
		return fmt.Errorf("it is of type %v, and no program", f.Type)
	}
	pvh := false
	for _, p := range f.Progs {
		if end := p.Off + p.Filesz; end < p.Off || end > uint64(size) {
			return fmt.Errorf("it is cut off: %d bytes of at least %d", size, end)
		}
		pvh = pvh || p.Type == elf.PT_NOTE && p.Filesz < 1<<20 && hasPVH(p, f.ByteOrder)
	}
	if !pvh {
		return errors.New("it has no PVH entry point (CONFIG_PVH)")
	}
	return nil
}

// hasPVH reports whether notes have XEN_ELFNOTE_PHYS32_ENTRY, which is the entry
// (xen/interface/elfnote.h).
func hasPVH(p *elf.Prog, order binary.ByteOrder) bool {
	const physical32Entry = 18
	b := make([]byte, p.Filesz)
	if _, err := io.ReadFull(p.Open(), b); err != nil {
		return false
	}
	for len(b) >= 12 {
		name, desc, kind := uint64(order.Uint32(b)), uint64(order.Uint32(b[4:])), order.Uint32(b[8:])
		start := 12 + align4(name)
		end := start + align4(desc)
		if end > uint64(len(b)) {
			return false
		}
		if kind == physical32Entry && name == 4 && string(b[12:16]) == "Xen\x00" {
			return true
		}
		b = b[end:]
	}
	return false
}

func align4(n uint64) uint64 { return (n + 3) &^ 3 }
