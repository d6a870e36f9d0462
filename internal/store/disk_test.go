package store

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/session"
	"github.com/enclave-run/enclave/internal/testenv"
)

// diskEnv is set where the test binary has a mount namespace of its own.
const diskEnv = "ENCLAVE_STORE_DISK_TEST"

// alone reports whether t runs in a mount namespace of its own. If not it runs t
// there, to its end: a file system that another process's namespace has a copy of
// does not end when it is unmounted.
func alone(t *testing.T) bool {
	t.Helper()
	testenv.Need(t, "loop")
	if os.Getenv(diskEnv) != "" {
		return true
	}
	cmd := exec.Command("/proc/self/exe", "-test.v", "-test.count=1", "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), diskEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("in its own mount namespace: %v", err)
	}
	return false
}

// A disk is an ext4 file system on a loop device, over a file that lies on a
// tmpfs of its own.
type disk struct {
	t     *testing.T
	under string // the tmpfs
	dir   string // where the file system is mounted
	dev   string
}

// newDisk mounts a file system of 32 MiB. What is written to it can't be more than
// room: a disk that promises more than it has.
func newDisk(t *testing.T, room string) *disk {
	t.Helper()
	d := &disk{t: t, under: t.TempDir(), dir: t.TempDir()}
	if err := unix.Mount("tmpfs", d.under, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "size="+room); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(d.under, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	image := filepath.Join(d.under, "image")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 32<<20)); err != nil {
		t.Fatal(err)
	}
	d.run("mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1", "-J", "size=4", image)
	d.dev = d.run("losetup", "--find", "--show", image)
	t.Cleanup(func() { d.run("losetup", "--detach", d.dev) })
	d.mount()
	t.Cleanup(d.unmount)
	return d
}

func (d *disk) run(name string, args ...string) string {
	d.t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		d.t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

func (d *disk) mount() {
	d.t.Helper()
	if err := unix.Mount(d.dev, d.dir, "ext4", unix.MS_NOSUID|unix.MS_NODEV, "errors=remount-ro"); err != nil {
		d.t.Fatalf("mount %s: %v", d.dev, err)
	}
}

func (d *disk) unmount() {
	d.t.Helper()
	if err := unix.Unmount(d.dir, 0); err != nil {
		d.t.Errorf("unmount %s: %v", d.dir, err)
	}
}

// cut has the file system take nothing more, at once and without writing what it
// has not written: for what is on it, a power cut.
func (d *disk) cut() {
	const shutdown, noFlush = 0x8004587d, 2 // EXT4_IOC_SHUTDOWN, EXT4_GOING_FLAGS_NOLOGFLUSH
	f, err := os.Open(d.dir)
	if err != nil {
		d.t.Error(err)
		return
	}
	defer f.Close()
	if err := unix.IoctlSetPointerInt(int(f.Fd()), shutdown, noFlush); err != nil {
		d.t.Errorf("shut the file system down: %v", err)
	}
}

// writeUntil has eight writers record events until each is refused, and calls
// fault, if there is one, once a hundred were acknowledged. It returns how many were before fault
// began, by session, and the last refusal: after a power cut nobody is told
// anything, and ext4 that is shut down may yet call a flush done.
func writeUntil(t *testing.T, s *Store, fault func()) (acked map[string]uint64, refused error) {
	t.Helper()
	var mu sync.Mutex
	acked = map[string]uint64{}
	total := 0
	var wg sync.WaitGroup
	for i := range 8 {
		id := fmt.Sprintf("s-%d", i)
		newSession(t, s, id)
		wg.Go(func() {
			for n := uint64(1); n < 5000; n++ {
				err := s.Record(t.Context(), id, audit.EgressDenied, audit.Data{Count: n, Host: strings.Repeat("x", 250)})
				mu.Lock()
				if err != nil {
					refused = err
					mu.Unlock()
					return
				}
				if total++; total <= 100 || fault == nil {
					acked[id] = n
				}
				due := total == 100 && fault != nil
				mu.Unlock()
				if due {
					fault()
				}
			}
		})
	}
	wg.Wait()
	return acked, refused
}

// checkBroken fails unless the store says that it is broken, and writes nothing
// more.
func checkBroken(t *testing.T, s *Store, refused error) {
	t.Helper()
	t.Logf("refused: %v", refused)
	if !errors.Is(refused, ErrBroken) {
		t.Errorf("a write was refused with %v", refused)
	}
	select {
	case <-s.Broken():
	default:
		t.Error("Broken is not closed")
	}
	if _, err := s.NextNumber(t.Context(), "acme"); !errors.Is(err, ErrBroken) {
		t.Errorf("a later write: %v", err)
	}
	_ = s.Close() // may not be able to fold the log in; the next opening does
}

// faulty breaks a store on a disk by fault, mends the disk, and fails if anything
// that was acknowledged is not there.
func faulty(t *testing.T, d *disk, fault, mend func()) {
	t.Helper()
	path := filepath.Join(d.dir, "enclave.db")
	s := open(t, path, Options{Every: never})
	acked, refused := writeUntil(t, s, fault)
	checkBroken(t, s, refused)
	mend()
	s = open(t, path, Options{Every: never})
	total := uint64(0)
	for id, n := range acked {
		checkAcked(t, s, id, n)
		total += n
	}
	t.Logf("%d events of %d sessions were acknowledged", total, len(acked))
	if total < 100 {
		t.Errorf("only %d events were acknowledged: it shows nothing", total)
	}
	if err := s.Record(t.Context(), "s-0", audit.EgressDenied, audit.Data{}); err != nil {
		t.Errorf("a record after the disk was mended: %v", err)
	}
	n, err := s.Session(t.Context(), "acme", "s-0")
	if err != nil || n.Phase != session.Pending {
		t.Errorf("session s-0 is %q, %v", n.Phase, err)
	}
	sequenceOnce(t, s, testSigner(t))
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// Unlike a kill, this loses what is only in the kernel's memory.
func TestPowerCutLosesNothingAcknowledged(t *testing.T) {
	if !alone(t) {
		return
	}
	for i := range 5 {
		d := newDisk(t, "64m")
		t.Logf("cut %d", i)
		faulty(t, d, d.cut, func() { d.unmount(); d.mount() })
	}
}

func TestReadOnlyDiskBreaksTheStore(t *testing.T) {
	if !alone(t) {
		return
	}
	d := newDisk(t, "64m")
	faulty(t, d, func() {
		// An inconsistency that ext4 finds; errors=remount-ro says what follows.
		if err := os.WriteFile("/sys/fs/ext4/"+filepath.Base(d.dev)+"/trigger_fs_error", []byte("1"), 0); err != nil {
			t.Error(err)
		}
	}, func() { d.unmount(); d.mount() })
}

// The file system takes each write; that the disk below has no room is only told
// by the flush.
func TestFailedFlushBreaksTheStore(t *testing.T) {
	if !alone(t) {
		return
	}
	d := newDisk(t, "3m")
	faulty(t, d, nil, func() {
		d.unmount()
		if err := unix.Mount("tmpfs", d.under, "tmpfs", unix.MS_REMOUNT|unix.MS_NOSUID|unix.MS_NODEV, "size=64m"); err != nil {
			t.Fatal(err)
		}
		d.mount()
	})
}
