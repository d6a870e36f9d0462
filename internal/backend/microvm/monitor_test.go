package microvm

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/backend/microvm/qemu/qemutest"
	"github.com/enclave-run/enclave/internal/wire"
)

// TestMain is the monitor of QEMU's machines too, and one that misbehaves as its
// first argument says: this program started again.
func TestMain(m *testing.M) {
	qemutest.Main()
	if len(os.Args) > 2 && os.Args[1] == "misbehave" {
		misbehave(os.Args[2], os.Args[3:])
	}
	os.Exit(m.Run())
}

// misbehave is a monitor without a machine: it serves as much of the API as a
// backend calls, and plays the guest as how says.
func misbehave(how string, args []string) {
	var id, root, accel, qemuPath string
	var user, group, oom int
	var dirs []string
	f := flag.NewFlagSet("monitor", flag.ExitOnError)
	f.StringVar(&id, "id", "", "")
	f.StringVar(&root, "root", "", "")
	f.IntVar(&user, "uid", 0, "")
	f.IntVar(&group, "gid", 0, "")
	f.StringVar(&accel, "accel", "", "")
	f.StringVar(&qemuPath, "qemu", "", "")
	f.IntVar(&oom, "oom-score", 0, "")
	f.Func("cgroup", "", func(s string) error { dirs = append(dirs, s); return nil })
	f.Parse(args)
	die := func(code int, format string, args ...any) {
		fmt.Fprintf(os.Stderr, format+"\n", args...)
		os.Exit(code)
	}
	if how == "exits at once" {
		die(3, "the disk is broken")
	}
	if how == "evades the count of processes" {
		dirs = slices.DeleteFunc(dirs, func(d string) bool { return strings.Contains(d, "pids") })
	}
	for _, d := range dirs {
		if err := os.WriteFile(filepath.Join(d, "cgroup.procs"), []byte("0"), 0o644); err != nil {
			die(4, "%v", err)
		}
	}
	signal.Ignore(syscall.SIGPIPE)
	if err := os.Chdir(root); err != nil {
		die(4, "%v", err)
	}
	fmt.Println("a kernel boots")
	if how == "never serves" {
		idle()
	}
	l, err := net.Listen("unix", apiSocket)
	if err != nil {
		die(4, "%v", err)
	}
	http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if how == "refuses the disk" && r.URL.Path == "/drives/image" {
			w.WriteHeader(http.StatusBadRequest)
			io.WriteString(w, `{"fault_message":"the block device is no erofs"}`)
			return
		}
		w.WriteHeader(http.StatusNoContent)
		if r.URL.Path == "/actions" && string(body) == `{"action_type":"InstanceStart"}` {
			go playGuest(how, die)
		}
	}))
}

// An order is what a test tells the guest of its machine to do: one of these.
type order struct {
	Report            wire.Report // to be the last
	Hangup, Die, Spin bool
}

// playGuest is what a guest says on the boot channel.
func playGuest(how string, die func(int, string, ...any)) {
	switch how {
	case "never says hello":
		return
	case "dies while it boots":
		fmt.Println("Kernel panic - not syncing: no init")
		die(1, "the machine has reset itself")
	}
	if how == "boots slowly" {
		var used unix.Rusage
		for used.Utime.Nano()+used.Stime.Nano() < (400 * time.Millisecond).Nanoseconds() {
			unix.Getrusage(unix.RUSAGE_SELF, &used)
		}
	}
	conn, err := net.Dial("unix", portSocket(wire.BootPort))
	if err != nil {
		die(5, "%v", err)
	}
	lines := wire.NewLineReader(conn)
	wire.SendLine(conn, wire.Machine{Version: wire.Version})
	var s wire.Setup
	if err := lines.Next(&s); err != nil {
		die(5, "%v", err)
	}
	if how == "dies while it is set up" {
		die(1, "the machine has reset itself")
	}
	report := wire.Report{Tasks: 1}
	wire.SendLine(conn, report)
	var f *os.File // told by the test what to do next
	for {
		time.Sleep(5 * time.Millisecond)
		if f, err = os.Open("do"); err == nil {
			break
		}
		wire.SendLine(conn, report)
	}
	var do order
	if err := json.NewDecoder(f).Decode(&do); err != nil {
		die(6, "%v", err)
	}
	switch {
	case do.Die:
		die(9, "the machine is gone")
	case do.Hangup:
		conn.Close()
		idle()
	case do.Spin:
		for n := 0; ; {
			n++
		}
	}
	wire.SendLine(conn, do.Report)
	idle()
}

// idle does nothing until this process is killed.
func idle() {
	for {
		time.Sleep(time.Hour)
	}
}
