// Command guest is what the tests run in a sandbox instead of enclave-guest: it
// dials the host and does what it is told, as root or as a workload. It is its
// own workload too, so that the tests need no image.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

type order struct {
	Argv []string // a program; argv[0] "self" is this one
	Root bool
	Exit *int // exit with this status
}

func main() {
	if len(os.Args) > 1 {
		work(os.Args[1:])
		return
	}
	// The orphans of a bomb would stay zombies for ever.
	exe, err := os.Executable()
	if err != nil {
		os.Exit(101)
	}
	if err := divide(os.Getenv("ENCLAVE_GUEST_DISK")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(102)
	}
	sock := filepath.Join(filepath.Dir(exe), "sock")
	for {
		conn, err := net.Dial("unix", sock)
		if err != nil {
			// Nobody listens: a sandbox that reaches nothing waits to be destroyed.
			time.Sleep(10 * time.Millisecond)
			continue
		}
		var o order
		if err := json.NewDecoder(conn).Decode(&o); err != nil {
			conn.Close()
			continue
		}
		if o.Exit != nil {
			os.Exit(*o.Exit)
		}
		go run(conn, exe, o)
	}
}

// divide makes /work and /tmp of one file system, as enclave-guest does.
func divide(disk string) error {
	for _, name := range []string{"/work", "/tmp"} {
		if err := errors.Join(os.Mkdir(disk+name, 0o700), os.Chmod(disk+name, os.ModeSticky|0o777)); err != nil {
			return err
		}
		if err := syscall.Mount(disk+name, name, "", syscall.MS_BIND, ""); err != nil {
			return err
		}
	}
	return syscall.Unmount(disk, syscall.MNT_DETACH)
}

func run(conn net.Conn, exe string, o order) {
	defer conn.Close()
	if o.Argv[0] == "self" {
		o.Argv[0] = exe
	}
	cmd := exec.Command(o.Argv[0], o.Argv[1:]...)
	cmd.Dir = "/work"
	cmd.Stdout, cmd.Stderr = conn, conn
	if !o.Root {
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: &syscall.Credential{Uid: 1000, Gid: 1000}}
	}
	err := cmd.Run()
	fmt.Fprintf(conn, "\nend: %v\n", err)
}

// work is the workloads, hostile and not.
func work(args []string) {
	arg := func(i int) int {
		n, err := strconv.Atoi(args[i])
		if err != nil {
			panic(err)
		}
		return n
	}
	switch args[0] {
	case "spin":
		for n := 0; ; n++ {
		}
	case "write": // write PATH MIB...: as much as asked, or until refused
		for i := 1; i < len(args); i += 2 {
			f, err := os.Create(args[i])
			if err != nil {
				fmt.Println("create:", err)
				os.Exit(1)
			}
			block := make([]byte, 1<<20)
			for n := range arg(i + 1) {
				block[0] = byte(n)
				if _, err := f.Write(block); err != nil {
					fmt.Println("write:", n, err)
					os.Exit(1)
				}
			}
			f.Close()
		}
	case "churn": // churn PATH MIB: write so much and remove it, without end
		block := make([]byte, arg(2)<<20)
		for {
			if err := os.WriteFile(args[1], block, 0o600); err != nil {
				fmt.Println("churn:", err)
			}
			os.Remove(args[1])
		}
	case "alloc": // alloc MIB
		var all [][]byte
		for range arg(1) {
			b := make([]byte, 1<<20)
			for i := 0; i < len(b); i += 4096 {
				b[i] = 1
			}
			all = append(all, b)
		}
		fmt.Println("allocated", len(all))
		time.Sleep(time.Hour)
	case "fork": // fork N: so many children at once, which wait for their input
		exe, _ := os.Executable()
		var ins []io.Closer
		started := 0
		for range arg(1) {
			c := exec.Command(exe, "cat")
			in, err := c.StdinPipe()
			if err != nil {
				break
			}
			if err := c.Start(); err != nil {
				fmt.Println("fork:", err)
				break
			}
			ins = append(ins, in)
			started++
		}
		fmt.Println("started", started)
		if len(args) > 2 {
			time.Sleep(time.Hour)
		}
	case "cat":
		io.Copy(io.Discard, os.Stdin)
	case "threads": // threads N: so many threads that wait in the kernel
		for range arg(1) {
			go func() {
				var p [2]int
				syscall.Pipe(p[:])
				syscall.Read(p[0], make([]byte, 1))
			}()
		}
		time.Sleep(time.Hour)
	case "reach": // reach ADDRESS...: what answers
		for _, a := range args[1:] {
			network := "tcp"
			if strings.HasPrefix(a, "/") {
				network = "unix"
			}
			c, err := net.DialTimeout(network, a, time.Second)
			if err == nil {
				c.Close()
				fmt.Println("reached", a)
			} else {
				fmt.Println("refused", a, err)
			}
		}
	case "show": // the environment as the workload sees it
		fmt.Println("uid", os.Getuid(), "euid", os.Geteuid())
		for _, p := range []string{"/", "/work", "/tmp", "/run/enclave", "/.enclave", "/sys", "/etc"} {
			err := os.WriteFile(filepath.Join(p, "probe"), nil, 0o600)
			fmt.Println("write", p, err)
		}
		for _, p := range []string{"/proc/self/status", "/proc/meminfo", "/proc/mounts"} {
			b, _ := os.ReadFile(p)
			fmt.Printf("%s:\n%s\n", p, b)
		}
		name, _ := os.Hostname()
		fmt.Println("hostname", name)
		entries, _ := os.ReadDir("/sys")
		fmt.Println("sys", len(entries))
	}
}
