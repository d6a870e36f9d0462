package kernel

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"
)

// A fake is a kernel package that a test makes and then spoils. Its kernel and its
// modules are the least that the package takes for one.
type fake struct {
	control map[string]string
	files   map[string][]byte
	suffix  string // of data.tar
}

func newFake() *fake {
	f := &fake{
		control: map[string]string{"Package": "linux-image-6.1.0-9-cloud-amd64", "Version": "6.1.9-1", "Architecture": "amd64"},
		files: map[string][]byte{
			"./boot/vmlinuz-6.1.0-9":                      bzImage(lz4Blocks(elfKernel("Xen\x00", 18))),
			"./lib/modules/6.1.0-9/modules.builtin":       []byte("kernel/drivers/char/hw_random/virtio-rng.ko\n"),
			"./lib/modules/6.1.0-9/kernel/fs/other.ko":    []byte("never looked at"),
			"./lib/modules/6.1.0-9/kernel/fs/erofs.ko.xz": compressed(".xz", elfModule("libcrc32c")),
		},
		suffix: ".xz",
	}
	for name, needs := range map[string]string{
		"drivers/virtio_mmio": "virtio", "drivers/virtio": "virtio_ring", "drivers/virtio_ring": "",
		"net/vmw_vsock_virtio_transport": "virtio,vsock", "net/vsock": "", "drivers/virtio_blk": "virtio,virtio_ring",
		"lib/libcrc32c": "", "drivers/tun": "",
	} {
		f.files["./lib/modules/6.1.0-9/kernel/"+name+".ko"] = elfModule(needs)
	}
	return f
}

func (f *fake) deb() *bytes.Reader {
	var about strings.Builder
	for _, k := range slices.Sorted(maps.Keys(f.control)) {
		fmt.Fprintf(&about, "%s: %s\n", k, f.control[k])
	}
	return bytes.NewReader(archive(
		"debian-binary", []byte("2.0\n"),
		"control.tar.gz", compressed(".gz", tarball(map[string][]byte{"./control": []byte(about.String())})),
		"data.tar"+f.suffix, compressed(f.suffix, tarball(f.files)),
	))
}

// archive is what ar(1) would make of names and contents.
func archive(parts ...any) []byte {
	b := []byte("!<arch>\n")
	for i := 0; i < len(parts); i += 2 {
		content := parts[i+1].([]byte)
		b = fmt.Appendf(b, "%-16s%-12d%-6d%-6d%-8s%-10d`\n", parts[i], 0, 0, 0, "100644", len(content))
		b = append(b, content...)
		if len(content)%2 == 1 {
			b = append(b, '\n')
		}
	}
	return b
}

func tarball(files map[string][]byte) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		_ = w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(files[name]))})
		_, _ = w.Write(files[name])
	}
	w.Close()
	return b.Bytes()
}

func compressed(suffix string, content []byte) []byte {
	var b bytes.Buffer
	var w io.WriteCloser
	switch suffix {
	case ".xz":
		w, _ = xz.NewWriter(&b)
	case ".zst":
		w, _ = zstd.NewWriter(&b)
	case ".gz":
		w = gzip.NewWriter(&b)
	default:
		return content
	}
	_, _ = w.Write(content)
	w.Close()
	return b.Bytes()
}

// lz4Blocks is content in LZ4's legacy format, with the size that a kernel's build
// appends.
func lz4Blocks(content []byte) []byte {
	b := []byte{0x02, 0x21, 0x4c, 0x18}
	block := make([]byte, lz4.CompressBlockBound(len(content)))
	n, err := lz4.CompressBlock(content, block, nil)
	if err != nil || n == 0 {
		panic(fmt.Sprint("what a test compresses does not shrink: ", err))
	}
	b = binary.LittleEndian.AppendUint32(b, uint32(n))
	b = append(b, block[:n]...)
	return binary.LittleEndian.AppendUint32(b, uint32(len(content)))
}

func bzImage(payload []byte) []byte {
	b := make([]byte, 1024)
	b[0x1f1] = 1
	copy(b[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(b[0x206:], 0x20f)
	binary.LittleEndian.PutUint32(b[0x24c:], uint32(len(payload)))
	return append(b, payload...)
}

// elfKernel is an ELF program with one note and room that compresses well.
func elfKernel(owner string, kind uint32) []byte {
	note := binary.LittleEndian.AppendUint32(nil, uint32(len(owner)))
	note = binary.LittleEndian.AppendUint32(note, 8)
	note = binary.LittleEndian.AppendUint32(note, kind)
	note = append(append(note, owner...), make([]byte, 8)...)
	b := elfHeader(2, 0x3e)
	binary.LittleEndian.PutUint64(b[32:], 64) // program headers
	binary.LittleEndian.PutUint16(b[54:], 56)
	binary.LittleEndian.PutUint16(b[56:], 1)
	p := make([]byte, 56)
	binary.LittleEndian.PutUint32(p, 4) // PT_NOTE
	binary.LittleEndian.PutUint64(p[8:], 64+56)
	binary.LittleEndian.PutUint64(p[32:], uint64(len(note)))
	return append(append(append(b, p...), note...), make([]byte, 4096)...)
}

func elfHeader(kind, machine uint16) []byte {
	b := make([]byte, 64)
	copy(b, "\x7fELF\x02\x01\x01")
	binary.LittleEndian.PutUint16(b[16:], kind)
	binary.LittleEndian.PutUint16(b[18:], machine)
	binary.LittleEndian.PutUint32(b[20:], 1)
	binary.LittleEndian.PutUint16(b[52:], 64)
	return b
}

// elfModule is an object file with a .modinfo that says what it needs.
func elfModule(needs string) []byte {
	info := []byte("license=GPL\x00depends=" + needs + "\x00name=x\x00")
	names := []byte("\x00.modinfo\x00.shstrtab\x00")
	b := elfHeader(1, 0x3e)
	infoAt := uint64(len(b))
	namesAt := infoAt + uint64(len(info))
	b = append(append(b, info...), names...)
	binary.LittleEndian.PutUint64(b[40:], uint64(len(b))) // section headers
	binary.LittleEndian.PutUint16(b[58:], 64)
	binary.LittleEndian.PutUint16(b[60:], 3)
	binary.LittleEndian.PutUint16(b[62:], 2)
	section := func(name, kind uint32, at, size uint64) {
		s := make([]byte, 64)
		binary.LittleEndian.PutUint32(s, name)
		binary.LittleEndian.PutUint32(s[4:], kind)
		binary.LittleEndian.PutUint64(s[24:], at)
		binary.LittleEndian.PutUint64(s[32:], size)
		b = append(b, s...)
	}
	section(0, 0, 0, 0)
	section(1, 1, infoAt, uint64(len(info)))
	section(10, 3, namesAt, uint64(len(names)))
	return b
}

func importFake(t *testing.T, f *fake) (Kernel, error) {
	t.Helper()
	deb := f.deb()
	return Import(t.Context(), t.TempDir(), deb, deb.Size())
}
