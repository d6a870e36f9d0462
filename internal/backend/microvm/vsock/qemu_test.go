package vsock_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/enclave-run/enclave/internal/backend/microvm/kernel"
	"github.com/enclave-run/enclave/internal/backend/microvm/vsock"
	"github.com/enclave-run/enclave/internal/testenv"
)

// A machine is a guest with a real kernel, under QEMU's emulation.
type machine struct {
	t       *testing.T
	uds     string
	started time.Time
}

// boot starts QEMU with a device and waits for the guest to say that it is up.
func boot(t *testing.T) *machine {
	t.Helper()
	testenv.Need(t, "qemu")
	if runtime.GOARCH != "amd64" {
		t.Skip("needs amd64: the machine is x86's microvm")
	}
	k, err := kernel.Newest(testenv.Kernels(t))
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "vsock") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	guest := filepath.Join(dir, "guest")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", guest, "./testdata/guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the guest: %v\n%s", err, out)
	}
	if err := os.Mkdir(filepath.Join(dir, "tmp"), 0o700); err != nil {
		t.Fatal(err)
	}
	initramfs, err := k.Initramfs(dir, guest)
	if err != nil {
		t.Fatal(err)
	}

	m := &machine{t: t, uds: filepath.Join(dir, "v")}
	up, err := net.Listen("unix", m.uds+"_1024")
	if err != nil {
		t.Fatal(err)
	}
	defer up.Close()
	d, err := vsock.New(vsock.Config{GuestCID: 3, UDS: m.uds})
	if err != nil {
		t.Fatal(err)
	}
	front, err := net.Listen("unix", filepath.Join(dir, "front"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var served error
	over := make(chan struct{})
	go func() {
		defer close(over)
		served = d.Serve(ctx, front)
	}()

	serial := filepath.Join(dir, "serial")
	qemu := exec.Command("qemu-system-x86_64", "-M", "microvm,acpi=on,pit=off,pic=off,rtc=on,isa-serial=on,x-option-roms=off,memory-backend=m",
		"-object", "memory-backend-memfd,id=m,size=256M,share=on", "-m", "256",
		"-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "1", "-nodefaults", "-no-user-config", "-nographic", "-no-reboot",
		"-global", "virtio-mmio.force-legacy=false", "-serial", "file:"+serial,
		"-kernel", k.Vmlinux(), "-initrd", initramfs, "-append", "console=ttyS0 quiet loglevel=3 8250.nr_uarts=1 tsc=reliable no_timer_check tsc_early_khz="+tscKHz(t)+
			" mitigations=off rcupdate.rcu_expedited=1 random.trust_cpu=on reboot=t panic=-1 nokaslr",
		"-chardev", "socket,id=vs,path="+front.Addr().String(), "-device", "vhost-user-vsock-device,chardev=vs")
	var said strings.Builder
	qemu.Stderr = &said
	m.started = time.Now()
	if err := qemu.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := os.ReadFile(serial)
			t.Logf("the console says:\n%s\nQEMU says:\n%s", out, said.String())
		}
		qemu.Process.Kill()
		qemu.Wait()
		if <-over; served != nil {
			t.Errorf("serve: %v", served)
		}
		cancel()
	})
	hello := make(chan error, 1)
	go func() {
		c, err := up.Accept()
		if err == nil {
			_, err = bufio.NewReader(c).ReadString('\n')
		}
		hello <- err
	}()
	select {
	case err := <-hello:
		if err != nil {
			t.Fatalf("the guest says no hello: %v", err)
		}
	case <-over:
		t.Fatalf("the device ends with %v before the guest is up", served)
	case <-time.After(2 * time.Minute):
		t.Fatal("the guest does not come up")
	}
	t.Logf("from the start of QEMU to the guest's hello: %v", time.Since(m.started).Round(time.Millisecond))
	return m
}

// tscKHz is the rate of this host's clock, which an emulated guest can't measure.
func tscKHz(t *testing.T) string {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`cpu MHz\s*:\s*(\d+)\.(\d{3})`).FindSubmatch(b)
	if found == nil {
		t.Skip("needs the rate of the CPU's clock in /proc/cpuinfo")
	}
	return string(found[1]) + string(found[2])
}

// dial connects to the guest's port and says what it shall do.
func (m *machine) dial(order string) (*net.UnixConn, *bufio.Reader, error) {
	c, err := net.Dial("unix", m.uds)
	if err != nil {
		return nil, nil, err
	}
	if _, err := io.WriteString(c, "CONNECT 80\n"); err != nil {
		return nil, nil, err
	}
	in := bufio.NewReaderSize(c, 64<<10)
	line, err := in.ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "OK ") {
		return nil, nil, fmt.Errorf("the guest's port answers %q: %w", line, err)
	}
	_, err = io.WriteString(c, order+"\n")
	return c.(*net.UnixConn), in, err
}

func (m *machine) must(order string) (*net.UnixConn, *bufio.Reader) {
	m.t.Helper()
	c, in, err := m.dial(order)
	if err != nil {
		m.t.Fatal(err)
	}
	return c, in
}

func TestLinuxInAMachine(t *testing.T) {
	m := boot(t)
	t.Run("reaches a port that listens and no other", func(t *testing.T) {
		l, err := net.Listen("unix", m.uds+"_2000")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		for port, want := range map[int]string{2000: "\n", 2001: "ECONNRESET\n"} {
			c, in := m.must("dial " + strconv.Itoa(port))
			if got, err := in.ReadString('\n'); err != nil || got != want {
				t.Errorf("port %d: %q, %v", port, got, err)
			}
			c.Close()
		}
	})
	t.Run("echoes byte-exact on 100 streams, and sees their ends", func(t *testing.T) {
		var done sync.WaitGroup
		for i := range 100 {
			done.Go(func() {
				const size = 100_000
				c, in, err := m.dial("echo")
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				want, got := sha256.New(), sha256.New()
				go func() {
					key := [32]byte{byte(i)}
					io.CopyN(struct{ io.Writer }{io.MultiWriter(c, want)}, rand.NewChaCha8(key), size)
					c.CloseWrite()
				}()
				if n, err := io.Copy(got, in); n != size || err != nil || string(got.Sum(nil)) != string(want.Sum(nil)) {
					t.Errorf("stream %d: %d bytes come back, %v, the same: %t", i, n, err, string(got.Sum(nil)) == string(want.Sum(nil)))
				}
			})
		}
		done.Wait()
	})
	t.Run("takes and gives 32 MB, byte-exact", func(t *testing.T) {
		const size = 32 << 20
		c, in := m.must("sink")
		want := sha256.New()
		began := time.Now()
		if _, err := io.CopyN(struct{ io.Writer }{io.MultiWriter(c, want)}, rand.NewChaCha8([32]byte{9}), size); err != nil {
			t.Fatal(err)
		}
		c.CloseWrite()
		answer, err := in.ReadString('\n')
		if got := fmt.Sprintf("%d %x <nil>\n", size, want.Sum(nil)); err != nil || answer != got {
			t.Errorf("the guest has read %q, %v, not %q", answer, err, got)
		}
		t.Logf("host to guest, hashed in it: %.0f MB/s", size/1e6/time.Since(began).Seconds())
		c.Close()

		began = time.Now()
		c, in = m.must("zero " + strconv.Itoa(4*size))
		n, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{in}, make([]byte, 256<<10))
		if n != 4*size || err != nil {
			t.Errorf("the host has read %d bytes, %v", n, err)
		}
		t.Logf("guest to host: %.0f MB/s", 4*size/1e6/time.Since(began).Seconds())
		c.Close()
	})
	t.Run("answers", func(t *testing.T) {
		c, in := m.must("echo")
		defer c.Close()
		var times []time.Duration
		b := make([]byte, 1)
		for range 500 {
			began := time.Now()
			if _, err := c.Write(b); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(in, b); err != nil {
				t.Fatal(err)
			}
			times = append(times, time.Since(began))
		}
		slices.Sort(times)
		t.Logf("round trip: p50 %v, p90 %v", times[250], times[450])
	})
	t.Run("that reads nothing holds up only its own stream", func(t *testing.T) {
		c, _ := m.must("hold")
		defer c.Close()
		c.SetWriteDeadline(time.Now().Add(time.Second))
		n, err := io.CopyN(c, rand.NewChaCha8([32]byte{}), 64<<20)
		if err == nil {
			t.Errorf("%d bytes went to a guest that reads none", n)
		}
		e, in := m.must("echo")
		defer e.Close()
		if _, err := e.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if b, err := in.ReadByte(); b != 'x' || err != nil {
			t.Errorf("another stream gives %q, %v", b, err)
		}
	})
}
