package qemu

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/enclave-run/enclave/internal/backend/microvm/firecracker"
)

// deaf is a vmm that does nothing but count.
type deaf struct {
	calls []string
	err   error
}

func (d *deaf) did(what string) error { d.calls = append(d.calls, what); return d.err }

func (d *deaf) start(*machine) error { return d.did("start") }
func (d *deaf) pause() error         { return d.did("pause") }
func (d *deaf) resume() error        { return d.did("resume") }
func (d *deaf) powerDown() error     { return d.did("power down") }
func (d *deaf) keepSerial() error    { return d.did("keep serial") }

// ask makes one call, given as "PUT /vsock {…}", and returns the status and the
// fault message or the body.
func ask(t *testing.T, h http.Handler, call string) (int, string) {
	t.Helper()
	method, rest, _ := strings.Cut(call, " ")
	path, body, _ := strings.Cut(rest, " ")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(body)))
	b, _ := io.ReadAll(w.Body)
	if w.Code != http.StatusBadRequest {
		return w.Code, string(b)
	}
	var f firecracker.FaultBody
	if err := firecracker.Decode(b, &f); err != nil {
		t.Errorf("%s: the refusal is %q: %v", call, b, err)
	}
	return w.Code, f.FaultMessage
}

func TestAPIRefusesWhatFirecrackerDoes(t *testing.T) {
	const vsock = `PUT /vsock {"guest_cid":3,"uds_path":"/v.sock"}`
	const config = `PUT /machine-config {"vcpu_count":1,"mem_size_mib":128}`
	const badBody = "An error occurred when deserializing the json body of a request: "
	const start = `PUT /actions {"action_type":"InstanceStart"}`
	for name, tc := range map[string]struct {
		state firecracker.InstanceState
		call  string
		want  string // the fault; empty for 204
	}{
		"a vsock":                             {call: vsock},
		"a machine":                           {call: config},
		"entropy":                             {call: "PUT /entropy {}"},
		"a serial file":                       {call: `PUT /serial {"serial_out_path":"/serial"}`},
		"a path that is none":                 {call: "PUT /vsocks {}", want: "Invalid request method and/or path: PUT vsocks."},
		"a method that is none":               {call: "DELETE /vsock", want: "Invalid request method and/or path: DELETE vsock."},
		"a device that it has not":            {call: "PUT /network-interfaces/eth0 {}", want: "Invalid request method and/or path: PUT network-interfaces/eth0."},
		"a path that is not clean":            {call: "PUT //vsock {}", want: "Invalid request method and/or path: PUT /vsock."},
		"a query":                             {call: "GET /?x=1", want: "Invalid request method and/or path: GET ."},
		"a question with a body":              {call: "GET / {}", want: "GET request cannot have a body."},
		"no body":                             {call: "PUT /vsock", want: badBody + "it is not a JSON object."},
		"an unknown field":                    {call: `PUT /entropy {"rate_limiter":{}}`, want: badBody + "unknown field `rate_limiter`."},
		"a field in other letters":            {call: `PUT /vsock {"Guest_CID":3,"uds_path":"/v.sock"}`, want: badBody + "unknown field `Guest_CID`."},
		"a missing field":                     {call: `PUT /machine-config {"vcpu_count":1}`, want: badBody + "missing field `mem_size_mib`."},
		"a field twice":                       {call: `PUT /vsock {"guest_cid":3,"guest_cid":4,"uds_path":"/v.sock"}`, want: badBody + "duplicate field `guest_cid`."},
		"a number that is text":               {call: `PUT /vsock {"guest_cid":"3","uds_path":"/v.sock"}`, want: badBody + "json: cannot unmarshal string into Go struct field Vsock.guest_cid of type uint32."},
		"more than a body may have":           {call: "PUT /vsock " + strings.Repeat(" ", maxBody+1), want: "read the request: http: request body too large"},
		"two processors":                      {call: `PUT /machine-config {"vcpu_count":2,"mem_size_mib":128}`, want: "vcpu_count is 2: this VMM has one processor"},
		"threads of a processor":              {call: `PUT /machine-config {"vcpu_count":1,"mem_size_mib":128,"smt":true}`, want: "smt: this VMM has one processor"},
		"no memory":                           {call: `PUT /machine-config {"vcpu_count":1,"mem_size_mib":0}`, want: "mem_size_mib is 0: not between 1 and 1048576"},
		"a CID that is the host's":            {call: `PUT /vsock {"guest_cid":2,"uds_path":"/v.sock"}`, want: "guest_cid is 2: not between 3 and 4294967294"},
		"a socket elsewhere":                  {call: `PUT /vsock {"guest_cid":3,"uds_path":"/vm/../run/v.sock"}`, want: `uds_path is "/vm/../run/v.sock": this VMM's jail has /v.sock alone`},
		"a console elsewhere":                 {call: `PUT /serial {"serial_out_path":"/dev/tty"}`, want: `serial_out_path is "/dev/tty": this VMM's jail has /serial alone`},
		"a log":                               {call: `PUT /logger {"log_path":"/log"}`, want: "Invalid request method and/or path: PUT logger."},
		"a drive of another id":               {call: `PUT /drives/a {"drive_id":"b","path_on_host":"/d","is_root_device":false,"is_read_only":true}`, want: "The id from the path does not match the id from the body!"},
		"a drive to write to":                 {call: `PUT /drives/a {"drive_id":"a","path_on_host":"/d","is_root_device":false,"is_read_only":false}`, want: "is_read_only is false: nothing in this VMM's jail can be written"},
		"a drive outside of the directory":    {call: `PUT /drives/a {"drive_id":"a","path_on_host":"/../etc/shadow","is_root_device":false,"is_read_only":true}`, want: `path_on_host: "/../etc/shadow" is not a file of this machine's directory, such as /vmlinux`},
		"a drive whose name has options":      {call: `PUT /drives/a {"drive_id":"a","path_on_host":"/d,readonly=off","is_root_device":false,"is_read_only":true}`, want: `path_on_host: "/d,readonly=off" is not a file of this machine's directory, such as /vmlinux`},
		"a kernel that is not there":          {call: `PUT /boot-source {"kernel_image_path":"/none"}`, want: "kernel_image_path: /none: no such file or directory"},
		"a start with nothing to boot":        {call: start, want: "Cannot start microvm without kernel configuration."},
		"an action that is none":              {call: `PUT /actions {"action_type":"Explode"}`, want: badBody + "unknown variant `Explode`, expected one of `FlushMetrics`, `InstanceStart`, `SendCtrlAltDel`."},
		"Ctrl-Alt-Del before the start":       {call: `PUT /actions {"action_type":"SendCtrlAltDel"}`, want: "The requested operation is not supported before starting the microVM."},
		"a pause before the start":            {call: `PATCH /vm {"state":"Paused"}`, want: "The requested operation is not supported before starting the microVM."},
		"metrics":                             {call: `PUT /actions {"action_type":"FlushMetrics"}`, want: "this VMM has no metrics"},
		"a machine after the start":           {state: firecracker.StateRunning, call: config, want: "The requested operation is not supported after starting the microVM."},
		"a vsock after the start":             {state: firecracker.StatePaused, call: vsock, want: "The requested operation is not supported after starting the microVM."},
		"a second start":                      {state: firecracker.StateRunning, call: start, want: "The requested operation is not supported after starting the microVM."},
		"a pause":                             {state: firecracker.StateRunning, call: `PATCH /vm {"state":"Paused"}`},
		"a state that is none":                {state: firecracker.StateRunning, call: `PATCH /vm {"state":"Running"}`, want: badBody + "unknown variant `Running`, expected `Paused` or `Resumed`."},
		"Ctrl-Alt-Del to a machine that runs": {state: firecracker.StateRunning, call: `PUT /actions {"action_type":"SendCtrlAltDel"}`},
	} {
		t.Run(name, func(t *testing.T) {
			d := &deaf{}
			s := newServer("vm-1", d)
			if tc.state != "" {
				s.state = tc.state
			}
			status, got := ask(t, s, tc.call)
			want := http.StatusNoContent
			if tc.want != "" {
				want = http.StatusBadRequest
			}
			if status != want || got != tc.want {
				t.Errorf("got %d %s\nwant %d %s", status, got, want, tc.want)
			}
			if tc.want != "" && len(d.calls) > 0 {
				t.Errorf("it was refused and done: %v", d.calls)
			}
		})
	}
}

func TestAPIAnswersWhoItIs(t *testing.T) {
	s := newServer("vm-1", &deaf{})
	_, got := ask(t, s, "GET /version")
	if want := `{"firecracker_version":"0.0.0-qemu"}`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	for _, state := range []firecracker.InstanceState{firecracker.StateNotStarted, firecracker.StateRunning, firecracker.StatePaused} {
		s.state = state
		_, got := ask(t, s, "GET /")
		var i firecracker.InstanceInfo
		if err := json.Unmarshal([]byte(got), &i); err != nil || i != (firecracker.InstanceInfo{AppName: "Enclave QEMU", ID: "vm-1", State: state, VMMVersion: "0.0.0-qemu"}) {
			t.Errorf("got %s", got)
		}
	}
}

func TestStateIsWhatHappened(t *testing.T) {
	d := &deaf{}
	s := newServer("vm-1", d)
	s.state = firecracker.StateRunning
	ask(t, s, `PATCH /vm {"state":"Paused"}`)
	if s.state != firecracker.StatePaused {
		t.Errorf("after a pause it is %s", s.state)
	}
	d.err = errors.New("no")
	if status, why := ask(t, s, `PATCH /vm {"state":"Resumed"}`); status != http.StatusBadRequest || why != "no" || s.state != firecracker.StatePaused {
		t.Errorf("after a failure to resume: %d %s, %s", status, why, s.state)
	}
	if want := []string{"pause", "resume"}; !slices.Equal(d.calls, want) {
		t.Errorf("it did %v", d.calls)
	}
}

func TestMachineIsQEMUsCommandLine(t *testing.T) {
	m := &machine{
		config: &firecracker.MachineConfig{VCPUCount: 1, MemSizeMiB: 512},
		boot:   &firecracker.BootSource{KernelImagePath: "/vmlinux", InitrdPath: "/initrd", BootArgs: "console=ttyS0 quiet"},
		drive:  &firecracker.Drive{DriveID: "image", PathOnHost: "/disk.erofs", IsReadOnly: true},
		vsock:  &firecracker.Vsock{GuestCID: 3, UDSPath: "/v.sock"},
		rng:    true,
	}
	golden := func(accel []string, cmdline string) []string {
		return slices.Concat([]string{
			"/usr/bin/qemu-system-x86_64",
			"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
			"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
			"-M", "microvm,acpi=on,pit=off,pic=off,rtc=on,isa-serial=on,x-option-roms=off,auto-kernel-cmdline=off,memory-backend=ram",
			"-global", "virtio-mmio.force-legacy=false",
			"-object", "memory-backend-memfd,id=ram,size=512M,share=on", "-m", "512M", "-smp", "1",
			"-L", "/firmware", "-bios", "qboot.rom",
		}, accel, []string{
			"-chardev", "socket,id=monitor,fd=4", "-mon", "chardev=monitor,mode=control",
			"-chardev", "socket,id=console,fd=5", "-serial", "chardev:console",
			"-kernel", "/vm/vmlinux", "-initrd", "/vm/initrd", "-append", cmdline,
			"-drive", "if=none,id=drive,format=raw,read-only=on,file=/vm/disk.erofs", "-device", "virtio-blk-device,drive=drive",
			"-object", "rng-builtin,id=entropy", "-device", "virtio-rng-device,rng=entropy",
			"-chardev", "socket,id=vsock,fd=6", "-device", "vhost-user-vsock-device,chardev=vsock",
		})
	}
	in := inside{QEMU: "/usr/bin/qemu-system-x86_64", Firmware: "qboot.rom", Accel: TCG, TSC: 2596146}
	want := golden([]string{"-accel", "tcg,thread=multi,tb-size=128", "-cpu", "max"}, "console=ttyS0 quiet no_timer_check tsc=reliable tsc_early_khz=2596146")
	if d := cmp.Diff(want, m.argv(in)); d != "" {
		t.Error(d)
	}
	in.Accel, in.TSC = KVM, 0
	m.drive.IsRootDevice = true
	want = golden([]string{"-accel", "kvm", "-cpu", "host"}, "console=ttyS0 quiet root=/dev/vda ro")
	if d := cmp.Diff(want, m.argv(in)); d != "" {
		t.Error(d)
	}
}

func TestOptionsAreStrict(t *testing.T) {
	good := []string{"--id", "a", "--root", "/vm", "--uid", "5", "--gid", "5", "--accel", "tcg", "--qemu", "/q"}
	for name, tc := range map[string]struct {
		more []string
		want string
	}{
		"root's uid":          {[]string{"--uid", "0"}, "--uid and --gid are required, and are not root's"},
		"a relative root":     {[]string{"--root", "vm"}, `--root "vm" is not an absolute path`},
		"an id with a slash":  {[]string{"--id", "../x"}, `--id "../x" is not 1 to 64 letters, digits and hyphens`},
		"another accelerator": {[]string{"--accel", "hvf"}, `--accel "hvf" is neither kvm nor tcg`},
		"no accelerator":      {[]string{"--accel", ""}, `--accel "" is neither kvm nor tcg`},
		"a relative QEMU":     {[]string{"--qemu", "qemu"}, `--qemu "qemu" is not an absolute path`},
		"no one's last":       {[]string{"--oom-score", "-1"}, "--oom-score -1 is not between 0 and 1000"},
		"a word":              {[]string{"more"}, `"more" is not an option`},
		"an unknown option":   {[]string{"--net"}, "flag provided but not defined: -net"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := parse(slices.Concat(good, tc.more)); err == nil || err.Error() != tc.want {
				t.Errorf("got %v, want %s", err, tc.want)
			}
		})
	}
}
