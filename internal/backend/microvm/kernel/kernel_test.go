package kernel

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func onlyAMD64(t *testing.T) {
	t.Helper()
	if runtime.GOARCH != "amd64" {
		t.Skip("guest kernels are for amd64")
	}
}

// contents returns every file below dir.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() == ".lock" {
			return err
		}
		b, err := os.ReadFile(path)
		name, _ := filepath.Rel(dir, path)
		all[name] = string(b)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

func TestSamePackageGivesTheSameBytes(t *testing.T) {
	onlyAMD64(t)
	guest := filepath.Join(t.TempDir(), "guest")
	if err := os.WriteFile(guest, []byte("a program"), 0o755); err != nil {
		t.Fatal(err)
	}
	var made []map[string]string
	for range 2 {
		dir := t.TempDir()
		deb := newFake().deb()
		k, err := Import(t.Context(), dir, deb, deb.Size())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := k.Initramfs(dir, guest); err != nil {
			t.Fatal(err)
		}
		made = append(made, contents(t, dir))
	}
	if diff := cmp.Diff(made[0], made[1]); diff != "" {
		t.Error(diff)
	}
	if len(made[0]) < 10 {
		t.Errorf("only %d files were made", len(made[0]))
	}
}

func TestEveryCompressionIsRead(t *testing.T) {
	onlyAMD64(t)
	for _, suffix := range []string{".xz", ".zst", ".gz", ""} {
		f := newFake()
		f.suffix = suffix
		if _, err := importFake(t, f); err != nil {
			t.Errorf("data.tar%s: %v", suffix, err)
		}
	}
	raw := elfKernel("Xen\x00", 18)
	size := lz4Blocks(raw)[len(lz4Blocks(raw))-4:]
	for _, suffix := range []string{".xz", ".zst", ".gz"} {
		payload := compressed(suffix, raw)
		if suffix != ".gz" { // which ends with it anyway
			payload = append(payload, size...)
		}
		got, err := vmlinux(bzImage(payload))
		if err != nil || !bytes.Equal(got, raw) {
			t.Errorf("a kernel compressed as %s: %v", suffix, err)
		}
	}
}

func TestModulesAreLoadedAfterWhatTheyNeed(t *testing.T) {
	onlyAMD64(t)
	k, err := importFake(t, newFake())
	if err != nil {
		t.Fatal(err)
	}
	// virtio_rng is part of that kernel.
	want := []string{"virtio_ring", "virtio", "virtio_mmio", "vsock", "vmw_vsock_virtio_transport", "virtio_blk", "libcrc32c", "erofs", "tun"}
	if diff := cmp.Diff(want, k.Modules); diff != "" {
		t.Error(diff)
	}
}

func TestPackageThatWouldNotBootIsRefused(t *testing.T) {
	onlyAMD64(t)
	const dir = "./lib/modules/6.1.0-9/kernel/"
	for name, tc := range map[string]struct {
		spoil func(*fake)
		says  string
	}{
		"another package":         {func(f *fake) { f.control["Package"] = "linux-image-cloud-amd64" }, "has no kernel"},
		"another architecture":    {func(f *fake) { f.control["Architecture"] = "arm64" }, "is for"},
		"no kernel":               {func(f *fake) { delete(f.files, "./boot/vmlinuz-6.1.0-9") }, "no /boot/vmlinuz"},
		"two kernels":             {func(f *fake) { f.files["./boot/vmlinuz-7"] = []byte("x") }, "two kernels"},
		"no erofs":                {func(f *fake) { delete(f.files, dir+"fs/erofs.ko.xz") }, "no module"},
		"a missing need":          {func(f *fake) { delete(f.files, dir+"net/vsock.ko") }, "no module"},
		"a module twice":          {func(f *fake) { f.files[dir+"other/tun.ko"] = elfModule("") }, "twice"},
		"modules in a ring":       {func(f *fake) { f.files[dir+"lib/libcrc32c.ko"] = elfModule("erofs") }, "needs itself"},
		"a module that is none":   {func(f *fake) { f.files[dir+"drivers/tun.ko"] = []byte("junk") }, "no ELF"},
		"a kernel that is none":   {func(f *fake) { f.files["./boot/vmlinuz-6.1.0-9"] = make([]byte, 4096) }, "bzImage"},
		"a kernel without PVH":    {func(f *fake) { f.files["./boot/vmlinuz-6.1.0-9"] = bzImage(lz4Blocks(elfKernel("Xen\x00", 5))) }, "PVH"},
		"a note of another owner": {func(f *fake) { f.files["./boot/vmlinuz-6.1.0-9"] = bzImage(lz4Blocks(elfKernel("GNU\x00", 18))) }, "PVH"},
		"a payload outside": {func(f *fake) {
			b := bzImage(lz4Blocks(elfKernel("Xen\x00", 18)))
			f.files["./boot/vmlinuz-6.1.0-9"] = b[:len(b)-1]
		}, "outside"},
		"a size that is a lie": {func(f *fake) {
			b := bzImage(lz4Blocks(elfKernel("Xen\x00", 18)))
			b[len(b)-4] ^= 1
			f.files["./boot/vmlinuz-6.1.0-9"] = b
		}, ""},
		"an unknown compression":          {func(f *fake) { f.suffix = ".lzma" }, "can be read"},
		"a version that a terminal obeys": {func(f *fake) { f.control["Version"] = "6.1\x1b]0;owned\a" }, `"6.1\x1b]0;owned\a"`},
		"no version":                      {func(f *fake) { delete(f.control, "Version") }, "its version is"},
		"a need that a terminal obeys":    {func(f *fake) { f.files[dir+"drivers/tun.ko"] = elfModule("\x1b[2J") }, `needs "\x1b[2J"`},
		"a need that is a path":           {func(f *fake) { f.files[dir+"drivers/tun.ko"] = elfModule("../../tun") }, "no module's name"},
	} {
		f := newFake()
		tc.spoil(f)
		dir := t.TempDir()
		deb := f.deb()
		_, err := Import(t.Context(), dir, deb, deb.Size())
		if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v", name, err)
		}
		if left := contents(t, dir); len(left) > 0 {
			t.Errorf("%s: %d files were left", name, len(left))
		}
		if _, err := Newest(dir); !errors.Is(err, ErrNone) {
			t.Errorf("%s: there is a kernel now: %v", name, err)
		}
	}
}

func TestTruncatedPackageIsRefused(t *testing.T) {
	onlyAMD64(t)
	whole := newFake().deb()
	for _, size := range []int64{0, 7, 8, 60, 100, whole.Size() / 2, whole.Size() - 1} {
		if _, err := Import(t.Context(), t.TempDir(), whole, size); !errors.Is(err, ErrRefused) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

func TestBombIsNotUnpacked(t *testing.T) {
	r, done, err := decompress(bytes.NewReader(compressed(".xz", make([]byte, 1<<20))), ".xz", 1<<10, "a bomb")
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	if b, err := readAll(r, 0, 1<<21, "it"); !errors.Is(err, ErrRefused) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

// A stream of a few bytes may ask for a dictionary of 4 GiB, which is in memory as
// soon as it is used again.
func TestADictionaryIsBounded(t *testing.T) {
	for size, want := range map[byte]bool{22: true, 30: true, 31: false, 40: false} { // 8 MiB, 128 MiB, 192 MiB, 4 GiB
		b := compressed(".xz", make([]byte, 1<<20))
		// A block's header lies behind the stream's 12 bytes: its length in words, flags,
		// LZMA2's number, and the size of the dictionary, as one byte (xz's file format,
		// 5.3.1); and the sum of all that.
		h := b[12:][:4*(int(b[12])+1)]
		h[bytes.IndexByte(h, 0x21)+2] = size
		binary.LittleEndian.PutUint32(h[len(h)-4:], crc32.ChecksumIEEE(h[:len(h)-4]))
		r, done, err := decompress(bytes.NewReader(b), ".xz", 1<<20, "it")
		if err == nil {
			_, err = io.Copy(io.Discard, r)
			done()
		}
		if (err == nil) != want || err != nil && !errors.Is(err, ErrRefused) {
			t.Errorf("%d: %v", size, err)
		}
	}
}

// Modules that decompress to far more than their package has are refused before
// all of them are in memory.
func TestModulesAreBoundedTogether(t *testing.T) {
	taken := 0
	_, _, err := resolve(func(name string) ([]byte, error) {
		taken++
		return append(elfModule(name+"_"), make([]byte, 16<<20)...), nil
	})
	if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "have more than") {
		t.Error(err)
	}
	if most := maxModules / (16 << 20); taken > most {
		t.Errorf("%d were taken, of which %d fit", taken, most)
	}
}

func TestNewestIsByVersion(t *testing.T) {
	onlyAMD64(t)
	dir := t.TempDir()
	for _, v := range []string{"6.1.99-1", "6.1.100-1", "6.1.9-1"} {
		f := newFake()
		f.control["Version"] = v
		deb := f.deb()
		if _, err := Import(t.Context(), dir, deb, deb.Size()); err != nil {
			t.Fatal(err)
		}
	}
	k, err := Newest(dir)
	if err != nil || k.Version != "6.1.100-1" {
		t.Errorf("%s, %v", k.Version, err)
	}
	versions := []string{"6.1.0-2", "6.1.0-10", "6.1.192-2", "6.1.192-2+b1", "6.12.1-1"}
	if !slices.IsSortedFunc(versions, compareVersions) {
		t.Errorf("%v are not in order", versions)
	}
}

func TestNoKernelSaysHowToGetOne(t *testing.T) {
	for _, dir := range []string{t.TempDir(), filepath.Join(t.TempDir(), "missing")} {
		if _, err := Newest(dir); !errors.Is(err, ErrNone) || !strings.Contains(err.Error(), "enclave kernel install") {
			t.Error(err)
		}
	}
}

func TestKernelWithoutItsFactsIsNone(t *testing.T) {
	onlyAMD64(t)
	dir := t.TempDir()
	deb := newFake().deb()
	k, err := Import(t.Context(), dir, deb, deb.Size())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(k.dir, factsFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := Newest(dir); !errors.Is(err, ErrNone) {
		t.Error(err)
	}
	if _, err := Import(t.Context(), dir, deb, deb.Size()); err != nil {
		t.Fatal(err)
	}
	if _, err := Newest(dir); err != nil {
		t.Error(err)
	}
}

func TestDamagedKernelIsFound(t *testing.T) {
	onlyAMD64(t)
	k, err := importFake(t, newFake())
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Verify(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(k.module("tun"), []byte("another"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := k.Verify(t.Context()); err == nil || !strings.Contains(err.Error(), "tun.ko") {
		t.Error(err)
	}
}

func TestInterruptedImportLeavesNothing(t *testing.T) {
	onlyAMD64(t)
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	deb := newFake().deb()
	if _, err := Import(ctx, dir, deb, deb.Size()); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if left := contents(t, dir); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestInitramfsIsMadeOnceForEachGuest(t *testing.T) {
	onlyAMD64(t)
	dir := t.TempDir()
	deb := newFake().deb()
	k, err := Import(t.Context(), dir, deb, deb.Size())
	if err != nil {
		t.Fatal(err)
	}
	guest := filepath.Join(t.TempDir(), "guest")
	paths := map[string]bool{}
	for _, program := range []string{"one", "one", "two"} {
		if err := os.WriteFile(guest, []byte(program), 0o755); err != nil {
			t.Fatal(err)
		}
		p, err := k.Initramfs(dir, guest)
		if err != nil {
			t.Fatal(err)
		}
		paths[p] = true
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		files := readCPIO(t, b)
		if got := files[".enclave/enclave-guest"]; got != program {
			t.Errorf("the guest is %q", got)
		}
		if files["init"] != ".enclave/enclave-guest" {
			t.Errorf("/init is %q", files["init"])
		}
		if want := string(elfModule("virtio_ring")); files["modules/01-virtio.ko"] != want {
			t.Error("the second module is not virtio")
		}
	}
	if len(paths) != 2 {
		t.Errorf("%d file systems for two guests", len(paths))
	}
}

func TestModuleLosesItsSignatureAlone(t *testing.T) {
	const magic = "~Module signature appended~\n"
	signed := "module" + "signature" + "\x00\x00\x02\x00\x00\x00\x00\x00" + "\x00\x00\x00\x09" + magic
	for in, want := range map[string]string{
		signed:               "module",
		"module":             "module",
		magic:                magic,
		"\xff" + signed[15:]: "\xff" + signed[15:], // longer than the module
	} {
		if got := string(unsigned([]byte(in))); got != want {
			t.Errorf("%q becomes %q", in, got)
		}
	}
}

// readCPIO is another reader of what cpio writes, by the format's documentation.
func readCPIO(t *testing.T, b []byte) map[string]string {
	t.Helper()
	hexes := func(s []byte) (n int) {
		for _, c := range s {
			d := bytes.IndexByte([]byte("0123456789abcdef"), c)
			if d < 0 {
				t.Fatalf("%q is not a number", s)
			}
			n = n*16 + d
		}
		return n
	}
	files := map[string]string{}
	for at := 0; ; {
		if string(b[at:at+6]) != "070701" {
			t.Fatalf("no header at %d", at)
		}
		size, named := hexes(b[at+54:at+62]), hexes(b[at+94:at+102])
		name := string(b[at+110 : at+110+named-1])
		at = (at + 110 + named + 3) &^ 3
		if name == "TRAILER!!!" {
			return files
		}
		files[name] = string(b[at : at+size])
		at = (at + size + 3) &^ 3
	}
}
