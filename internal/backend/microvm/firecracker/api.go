// Package firecracker speaks the API of a Firecracker process: the dozen calls
// that configure and start one virtual machine, as JSON over HTTP on a unix
// socket. Names and meanings are those of Firecracker's API description
// (src/firecracker/swagger/firecracker.yaml, versions 1.14 to 1.17). It is strict
// both ways: a field that it does not know, a missing, repeated or misspelt one
// is refused in requests and in answers alike, because a setting that was not
// understood is a setting that was not applied.
//
// It starts no process and decides nothing.
package firecracker

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
)

// MachineConfig is the body of PUT /machine-config.
type MachineConfig struct {
	VCPUCount  int   `json:"vcpu_count"`               // 1 to 32
	MemSizeMiB int64 `json:"mem_size_mib"`             // of the guest
	SMT        bool  `json:"smt" absent:"the default"` // two threads a core; default false
}

// BootSource is the body of PUT /boot-source. Paths are those that the VMM sees,
// which in a jail are not the host's.
type BootSource struct {
	KernelImagePath string `json:"kernel_image_path"` // an uncompressed ELF with a PVH note
	InitrdPath      string `json:"initrd_path,omitempty" absent:"none"`
	BootArgs        string `json:"boot_args,omitempty" absent:"the VMM's own"`
}

// Drive is the body of PUT /drives/{drive_id}. The first drive is /dev/vda, and
// so on.
type Drive struct {
	DriveID      string `json:"drive_id"` // letters, digits and _
	PathOnHost   string `json:"path_on_host"`
	IsRootDevice bool   `json:"is_root_device"` // adds root=/dev/vda to the kernel's arguments
	IsReadOnly   bool   `json:"is_read_only"`
}

// Vsock is the body of PUT /vsock. What the guest connects to at port P of CID 2
// arrives at the unix socket UDSPath_P; who connects to UDSPath and says "CONNECT
// P\n" reaches the guest's port P.
type Vsock struct {
	GuestCID uint32 `json:"guest_cid"` // at least 3
	UDSPath  string `json:"uds_path"`  // the VMM makes it: it must not exist
}

// Entropy is the body of PUT /entropy, which gives the guest a virtio device of
// the host's randomness.
type Entropy struct{}

// Serial is the body of PUT /serial (Firecracker 1.14 and later).
type Serial struct {
	SerialOutPath string `json:"serial_out_path"` // a file or a named pipe
}

// An ActionType is what PUT /actions does.
type ActionType string

// The actions.
const (
	InstanceStart  ActionType = "InstanceStart"
	SendCtrlAltDel ActionType = "SendCtrlAltDel" // asks the guest to end, on x86
	FlushMetrics   ActionType = "FlushMetrics"
)

// Action is the body of PUT /actions.
type Action struct {
	ActionType ActionType `json:"action_type"`
}

// A VMState is what PATCH /vm makes of a machine that was started.
type VMState string

// The states that can be asked for.
const (
	Paused  VMState = "Paused"
	Resumed VMState = "Resumed"
)

// VM is the body of PATCH /vm.
type VM struct {
	State VMState `json:"state"`
}

// An InstanceState is how far a machine is.
type InstanceState string

// The states that InstanceInfo reports.
const (
	StateNotStarted InstanceState = "Not started"
	StateRunning    InstanceState = "Running"
	StatePaused     InstanceState = "Paused"
)

// InstanceInfo is the answer of GET /.
type InstanceInfo struct {
	AppName    string        `json:"app_name"`
	ID         string        `json:"id"`
	State      InstanceState `json:"state"`
	VMMVersion string        `json:"vmm_version"`
}

// VersionInfo is the answer of GET /version.
type VersionInfo struct {
	FirecrackerVersion string `json:"firecracker_version"`
}

// FaultBody is the body of every answer that refuses.
type FaultBody struct {
	FaultMessage string `json:"fault_message"`
}

// Decode reads one JSON object into v, a pointer to one of this package's
// structs. It refuses fields that the struct has not (and, unlike encoding/json,
// those that only differ in case), a field that comes twice or is null, a
// required field that is missing, and anything after the object. Fields whose
// tag says what it means when they are absent are optional.
func Decode(b []byte, v any) error {
	fields := map[string]bool{} // whether it is required
	t := reflect.TypeOf(v).Elem()
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		_, optional := f.Tag.Lookup("absent")
		fields[name] = !optional
	}
	d := json.NewDecoder(bytes.NewReader(b))
	if open, err := d.Token(); err != nil || open != json.Delim('{') {
		return errors.New("it is not a JSON object")
	}
	seen := map[string]bool{}
	for d.More() {
		token, err := d.Token()
		if err != nil {
			return err
		}
		name, ok := token.(string)
		if !ok {
			return errors.New("it is not a JSON object")
		}
		if _, known := fields[name]; !known {
			return fmt.Errorf("unknown field `%.100s`", name)
		}
		if seen[name] {
			return fmt.Errorf("duplicate field `%s`", name)
		}
		seen[name] = true
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return err
		}
		if string(value) == "null" {
			return fmt.Errorf("null field `%s`", name)
		}
	}
	if _, err := d.Token(); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("something follows the JSON object")
	}
	for i := range t.NumField() { // in the order of the struct
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		if fields[name] && !seen[name] {
			return fmt.Errorf("missing field `%s`", name)
		}
	}
	return json.Unmarshal(b, v)
}
