package wire

import (
	"errors"
	"fmt"
	"io/fs"
	"strconv"
)

// The paths of the guest's calls. {id} is a process's ID in decimal.
const (
	PathHello        = "/v1/hello"                       // POST Lease → Hello
	PathShutdown     = "/v1/shutdown"                    // POST → when the mark has been sent
	PathProcesses    = "/v1/processes"                   // GET → ProcessList; POST StartRequest → events
	PathOutput       = "/v1/processes/{id}/output"       // GET → events from now on
	PathAcknowledged = "/v1/processes/{id}/acknowledged" // POST AcknowledgeRequest
	PathStdin        = "/v1/processes/{id}/stdin"        // POST bytes; DELETE closes it
	PathSignal       = "/v1/processes/{id}/signal"       // POST SignalRequest
	PathSize         = "/v1/processes/{id}/size"         // POST Size
	PathStat         = "/v1/files/stat"                  // GET ?path → FileInfo
	PathList         = "/v1/files/list"                  // GET ?path → Listing
	PathMakeDir      = "/v1/files/directory"             // POST PathRequest
	PathMove         = "/v1/files/move"                  // POST MoveRequest
	PathRemove       = "/v1/files/remove"                // POST PathRequest
	PathContent      = "/v1/files/content"               // GET ?path → bytes; PUT ?path&mode bytes
)

// A Lease is what becomes of a guest whose connections break. The zero Lease is that
// it ends at once.
type Lease struct {
	// Key is what it shows when it dials again. A guest that has one takes no other.
	Key []byte `json:"key,omitempty"`
	// WindowSeconds is how long it tries. Then it ends everything.
	WindowSeconds int `json:"windowSeconds,omitempty"`
}

// Hello is what the guest says of itself once its network is up and its
// privileges are gone.
type Hello struct {
	Version  int    `json:"version"`
	IPv6     bool   `json:"ipv6"`     // the kernel has it and it leads to the core too
	Micros   int64  `json:"micros"`   // from the guest's start to the end of its set-up
	UID      uint32 `json:"uid"`      // of workloads
	Confined bool   `json:"confined"` // capabilities dropped and the filter installed
	Dropped  uint64 `json:"dropped"`  // packets that led nowhere since nobody was connected, in total
}

// StartRequest says what to run. Exactly one of Language and Argv is set; Code
// goes with Language.
type StartRequest struct {
	Language string            `json:"language,omitempty"` // "python", "node" or "bash"
	Code     string            `json:"code,omitempty"`
	Argv     []string          `json:"argv,omitempty"`
	Env      map[string]string `json:"env,omitempty"` // added to PATH, HOME, LANG and TMPDIR; wins over them
	Cwd      string            `json:"cwd,omitempty"` // WorkDir if empty
	Stdin    bool              `json:"stdin,omitempty"`
	Terminal *Size             `json:"terminal,omitempty"` // run it on a terminal of this size

	// Key names this start, so that a repeat of it starts nothing: it is answered
	// with the process that was started. Empty is a start that is never repeated.
	Key string `json:"key,omitempty"`
	// From is how much of the process's log is known already. With a Key that names
	// no process it must be 0.
	From uint64 `json:"from,omitempty"`
}

// AcknowledgeRequest says that the core has the log of a process up to an offset.
// The guest need not keep what is before it. It is an end of a frame, and not
// beyond what was sent.
type AcknowledgeRequest struct {
	Offset uint64 `json:"offset"`
}

// Size is that of a terminal.
type Size struct {
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
}

// ProcessInfo is one process that was started and whose exit was not acknowledged.
type ProcessInfo struct {
	ID       uint32   `json:"id"`
	PID      uint32   `json:"pid"`
	Language string   `json:"language,omitempty"`
	Argv     []string `json:"argv"`
	Key      string   `json:"key,omitempty"` // of its start
	Exited   bool     `json:"exited,omitempty"`
}

// ProcessList is every process that was started and whose exit was not acknowledged.
type ProcessList struct {
	Processes []ProcessInfo `json:"processes"`
}

// SignalRequest names a signal by its number on Linux.
type SignalRequest struct {
	Signal int `json:"signal"`
}

// FileInfo is what the sandbox says of a file. A link is not followed.
type FileInfo struct {
	Name    string `json:"name"`
	Size    int64  `json:"size"`
	Mode    uint32 `json:"mode"`             // an fs.FileMode
	ModTime int64  `json:"modTime"`          // nanoseconds since 1970
	Target  string `json:"target,omitempty"` // of a link
}

// FileMode returns the type and permissions.
func (f FileInfo) FileMode() fs.FileMode { return fs.FileMode(f.Mode) }

// Listing is what a directory holds, sorted by name, at most MaxEntries.
type Listing struct {
	Entries   []FileInfo `json:"entries"`
	Truncated bool       `json:"truncated,omitempty"` // there are more
}

// PathRequest names one file.
type PathRequest struct {
	Path string `json:"path"`
}

// MoveRequest names two.
type MoveRequest struct {
	From string `json:"from"`
	To   string `json:"to"`
}

// A Code classifies why a call was refused. The set is closed: the core takes
// an unknown one for CodeOther.
type Code string

const (
	CodeOther         Code = "other"
	CodeBadRequest    Code = "bad_request"
	CodeNotFound      Code = "not_found"
	CodeExists        Code = "exists"
	CodePermission    Code = "permission"
	CodeNoSpace       Code = "no_space"
	CodeNoInterpreter Code = "no_interpreter"
	CodeExited        Code = "exited"
	CodeClosing       Code = "closing"
)

// stands returns the error that c stands for, or nil.
func (c Code) stands() error {
	switch c {
	case CodeNotFound:
		return fs.ErrNotExist
	case CodeExists:
		return fs.ErrExist
	case CodePermission:
		return fs.ErrPermission
	case CodeNoSpace:
		return ErrNoSpace
	case CodeNoInterpreter:
		return ErrNoInterpreter
	case CodeExited:
		return ErrProcessExited
	}
	return nil
}

var (
	ErrNoInterpreter = errors.New("the image has no interpreter for the language")
	ErrProcessExited = errors.New("the process has exited")
	ErrNoSpace       = errors.New("no space left in the sandbox")
)

// A CallError is a call that the guest refused. It matches, under errors.Is,
// what its Code stands for: fs.ErrNotExist, fs.ErrExist, fs.ErrPermission,
// ErrNoSpace, ErrNoInterpreter, ErrProcessExited. Detail is the sandbox's word.
type CallError struct {
	Code   Code   `json:"code"`
	Detail string `json:"detail"`
}

func (e *CallError) Error() string {
	return fmt.Sprintf("guest: %s: %s", e.Code, strconv.QuoteToGraphic(e.Detail))
}

func (e *CallError) Is(target error) bool {
	err := e.Code.stands()
	return err != nil && err == target
}
