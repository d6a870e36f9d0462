// This is /init of the machine in which the device is tested with a real kernel.
// It loads the modules, says on port 1024 of the host that it is up, and does on
// its own port 80 what the first line of a connection says.
package main

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if err := serve(); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
	}
	unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}

func serve() error {
	modules, err := filepath.Glob("/modules/*.ko")
	if err != nil {
		return err
	}
	for _, name := range modules {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil {
			return fmt.Errorf("load %s: %w", name, err)
		}
		f.Close()
	}
	l, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	if err := unix.Bind(l, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: 80}); err != nil {
		return err
	}
	if err := unix.Listen(l, 256); err != nil {
		return err
	}
	// The device's driver comes up by itself.
	var up stream
	for range 1000 {
		if up, err = dial(1024); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		return err
	}
	if _, err := io.WriteString(up, "up\n"); err != nil {
		return err
	}
	for {
		fd, _, err := unix.Accept(l)
		if err != nil {
			return err
		}
		go obey(stream(fd))
	}
}

// A stream is a connected socket.
type stream int

func (s stream) Read(p []byte) (int, error) {
	n, err := unix.Read(int(s), p)
	if n == 0 && err == nil {
		return 0, io.EOF
	}
	return max(n, 0), err
}

func (s stream) Write(p []byte) (int, error) {
	total := 0
	for len(p) > 0 {
		n, err := unix.Write(int(s), p)
		if err != nil {
			return total, err
		}
		p, total = p[n:], total+n
	}
	return total, nil
}

func dial(port uint32) (stream, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0)
	if err != nil {
		return -1, err
	}
	// The runtime's own signals interrupt a connect, which is then as if it had never
	// begun (net/vmw_vsock/af_vsock.c, vsock_connect).
	for err = unix.EINTR; err == unix.EINTR; {
		err = unix.Connect(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_HOST, Port: port})
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return stream(fd), nil
}

// held keeps the sockets that nobody reads.
var held atomic.Int64

func obey(s stream) {
	in := bufio.NewReaderSize(s, 64<<10)
	line, err := in.ReadString('\n')
	if err != nil {
		unix.Close(int(s))
		return
	}
	word := strings.Fields(line)
	if word[0] == "hold" {
		held.Add(1)
		return
	}
	defer unix.Close(int(s))
	switch word[0] {
	case "echo":
		io.CopyBuffer(struct{ io.Writer }{s}, struct{ io.Reader }{in}, make([]byte, 64<<10))
	case "sink":
		h := sha256.New()
		n, err := io.CopyBuffer(h, struct{ io.Reader }{in}, make([]byte, 64<<10))
		fmt.Fprintf(s, "%d %x %v\n", n, h.Sum(nil), err)
	case "zero":
		var n int64
		fmt.Sscan(word[1], &n)
		b := make([]byte, 256<<10)
		for ; n > 0; n -= int64(len(b)) {
			if _, err := s.Write(b[:min(n, int64(len(b)))]); err != nil {
				return
			}
		}
	case "dial":
		var port uint32
		fmt.Sscan(word[1], &port)
		c, err := dial(port)
		var errno unix.Errno
		errors.As(err, &errno)
		fmt.Fprintln(s, unix.ErrnoName(errno))
		if err == nil {
			unix.Close(int(c))
		}
	case "quit":
		unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	}
}
