package qemu

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"strings"
	"sync"

	"github.com/enclave-run/enclave/internal/backend/microvm/firecracker"
)

// maxBody is Firecracker's own limit (--http-api-max-payload-size).
const maxBody = 51200

// A fault is a refusal in Firecracker's words, whose sentences are whole.
type fault string

func (f fault) Error() string { return string(f) }

const (
	errAfterStart  fault = "The requested operation is not supported after starting the microVM."
	errBeforeStart fault = "The requested operation is not supported before starting the microVM."
	errNoKernel    fault = "Cannot start microvm without kernel configuration."
	errOtherID     fault = "The id from the path does not match the id from the body!"
	errGetBody     fault = "GET request cannot have a body."
)

// notUnderstood is the refusal of a body.
func notUnderstood(why string) fault {
	return fault("An error occurred when deserializing the json body of a request: " + why + ".")
}

// A vmm does what calls of the API ask for once they are understood. Its methods
// are called one at a time.
type vmm interface {
	// start starts m, once. When it fails the machine can't be started any more.
	start(m *machine) error
	pause() error
	resume() error
	powerDown() error
	// keepSerial has the console's last bytes kept in the file that the host
	// gave for that.
	keepSerial() error
}

// A server is the API of one machine. Every refusal is a 400 with a
// fault_message, as Firecracker's is.
type server struct {
	id  string
	vmm vmm

	mu      sync.Mutex // guards what follows; one call at a time
	machine machine
	state   firecracker.InstanceState
}

func newServer(id string, v vmm) *server {
	return &server{id: id, vmm: v, state: firecracker.StateNotStarted}
}

// ServeHTTP implements http.Handler.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answer, err := s.call(r)
	w.Header().Set("Server", "Firecracker API")
	switch {
	case err != nil:
		write(w, http.StatusBadRequest, firecracker.FaultBody{FaultMessage: err.Error()})
	case answer == nil:
		w.WriteHeader(http.StatusNoContent)
	default:
		write(w, http.StatusOK, answer)
	}
}

func write(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		status, b = http.StatusInternalServerError, nil
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(b) // who asked may be gone
}

func (s *server) call(r *http.Request) (answer any, err error) {
	body, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, maxBody))
	if err != nil {
		return nil, fmt.Errorf("read the request: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	unknown := fault(fmt.Sprintf("Invalid request method and/or path: %s %.100s.", r.Method, strings.TrimPrefix(r.URL.Path, "/")))
	if r.URL.RawQuery != "" || r.URL.Path != path.Clean(r.URL.Path) {
		return nil, unknown
	}
	if r.Method == http.MethodGet {
		if len(body) > 0 {
			return nil, errGetBody
		}
		switch r.URL.Path {
		case "/":
			return firecracker.InstanceInfo{AppName: "Enclave QEMU", ID: s.id, State: s.state, VMMVersion: Version}, nil
		case "/version":
			return firecracker.VersionInfo{FirecrackerVersion: Version}, nil
		}
		return nil, unknown
	}
	switch what := r.Method + " " + r.URL.Path; {
	case what == "PUT /machine-config":
		return nil, configure(s, body, s.setConfig)
	case what == "PUT /boot-source":
		return nil, configure(s, body, s.setBoot)
	case strings.HasPrefix(what, "PUT /drives/"):
		return nil, configure(s, body, func(d firecracker.Drive) error { return s.setDrive(path.Base(r.URL.Path), d) })
	case what == "PUT /vsock":
		return nil, configure(s, body, s.setVsock)
	case what == "PUT /entropy":
		return nil, configure(s, body, func(firecracker.Entropy) error { s.machine.rng = true; return nil })
	case what == "PUT /serial":
		return nil, configure(s, body, s.setSerial)
	case what == "PUT /actions":
		var a firecracker.Action
		if err := decode(body, &a); err != nil {
			return nil, err
		}
		return nil, s.act(a.ActionType)
	case what == "PATCH /vm":
		var v firecracker.VM
		if err := decode(body, &v); err != nil {
			return nil, err
		}
		return nil, s.change(v.State)
	}
	return nil, unknown
}

func decode(body []byte, v any) error {
	if err := firecracker.Decode(body, v); err != nil {
		return notUnderstood(err.Error())
	}
	return nil
}

// configure hands the body of a call that comes before the start to set.
func configure[T any](s *server, body []byte, set func(T) error) error {
	var v T
	if err := decode(body, &v); err != nil {
		return err
	}
	if s.state != firecracker.StateNotStarted {
		return errAfterStart
	}
	return set(v)
}

func (s *server) setConfig(c firecracker.MachineConfig) error {
	switch {
	case c.VCPUCount != 1:
		return fmt.Errorf("vcpu_count is %d: this VMM has one processor", c.VCPUCount)
	case c.SMT:
		return errors.New("smt: this VMM has one processor")
	case c.MemSizeMiB < 1 || c.MemSizeMiB > maxMemMiB:
		return fmt.Errorf("mem_size_mib is %d: not between 1 and %d", c.MemSizeMiB, maxMemMiB)
	}
	s.machine.config = &c
	return nil
}

func (s *server) setBoot(b firecracker.BootSource) error {
	kernel, err := inVM(b.KernelImagePath)
	if err != nil {
		return fmt.Errorf("kernel_image_path: %w", err)
	}
	if err := checkKernel(kernel); err != nil {
		return fmt.Errorf("kernel_image_path: %s is not a kernel to boot: %w", b.KernelImagePath, err)
	}
	if b.InitrdPath != "" {
		if _, err := inVM(b.InitrdPath); err != nil {
			return fmt.Errorf("initrd_path: %w", err)
		}
	}
	for _, c := range []byte(b.BootArgs) {
		if c < ' ' || c > '~' {
			return fmt.Errorf("boot_args has byte %#x: only printable ASCII is a kernel's argument", c)
		}
	}
	s.machine.boot = &b
	return nil
}

func (s *server) setDrive(id string, d firecracker.Drive) error {
	switch {
	case d.DriveID != id:
		return errOtherID
	case s.machine.drive != nil && s.machine.drive.DriveID != id:
		return errors.New("this VMM has room for one drive")
	case !d.IsReadOnly:
		return errors.New("is_read_only is false: nothing in this VMM's jail can be written")
	}
	if _, err := inVM(d.PathOnHost); err != nil {
		return fmt.Errorf("path_on_host: %w", err)
	}
	s.machine.drive = &d
	return nil
}

func (s *server) setVsock(v firecracker.Vsock) error {
	switch {
	case v.GuestCID < 3 || v.GuestCID == 1<<32-1:
		return fmt.Errorf("guest_cid is %d: not between 3 and 4294967294", v.GuestCID)
	case v.UDSPath != "/"+vsockName:
		return fmt.Errorf("uds_path is %q: this VMM's jail has /%s alone", v.UDSPath, vsockName)
	}
	s.machine.vsock = &v
	return nil
}

func (s *server) setSerial(v firecracker.Serial) error {
	if v.SerialOutPath != "/"+serialName {
		return fmt.Errorf("serial_out_path is %q: this VMM's jail has /%s alone", v.SerialOutPath, serialName)
	}
	return s.vmm.keepSerial()
}

func (s *server) act(a firecracker.ActionType) error {
	started := s.state != firecracker.StateNotStarted
	switch {
	case a == firecracker.InstanceStart && started:
		return errAfterStart
	case a == firecracker.InstanceStart:
		return s.start()
	case a == firecracker.SendCtrlAltDel && !started:
		return errBeforeStart
	case a == firecracker.SendCtrlAltDel:
		return s.vmm.powerDown()
	case a == firecracker.FlushMetrics:
		return errors.New("this VMM has no metrics")
	}
	return notUnderstood(fmt.Sprintf("unknown variant `%.100s`, expected one of `FlushMetrics`, `InstanceStart`, `SendCtrlAltDel`", a))
}

func (s *server) start() error {
	if s.machine.boot == nil {
		return errNoKernel
	}
	if n := len(s.machine.cmdline(inside{TSC: 1e7})); n > maxBootArgs {
		return fmt.Errorf("boot_args make a kernel command line of %d bytes: the kernel reads %d", n, maxBootArgs)
	}
	s.state = firecracker.StateRunning // a start that failed is one that happened
	if err := s.vmm.start(&s.machine); err != nil {
		return fmt.Errorf("start the machine: %w", err)
	}
	return nil
}

func (s *server) change(to firecracker.VMState) (err error) {
	if s.state == firecracker.StateNotStarted {
		return errBeforeStart
	}
	state := firecracker.StateRunning
	switch to {
	case firecracker.Paused:
		state, err = firecracker.StatePaused, s.vmm.pause()
	case firecracker.Resumed:
		err = s.vmm.resume()
	default:
		return notUnderstood(fmt.Sprintf("unknown variant `%.100s`, expected `Paused` or `Resumed`", to))
	}
	if err == nil {
		s.state = state
	}
	return err
}
