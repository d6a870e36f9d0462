// Package wire is what crosses the one stream between a sandbox and the core:
// the preface of a connection, packet frames, and the guest's calls. It refuses
// to believe the sandbox: what comes from there is capped before it is read, and
// what breaks a rule ends the connection with ErrProtocol.
//
// The guest program makes two connections. One carries IP packets both ways.
// On the other the guest is an HTTP/2 server without TLS and the core its only
// client. The core takes one of each before any workload exists and no other.
package wire

import "errors"

// ErrProtocol reports that the other side broke a rule of this package. Nothing
// more is to be read from a connection that gave it.
var ErrProtocol = errors.New("protocol violation")

// Version is of all that crosses the stream together. A core starts guests of its
// own build. One that was restarted may find guests of an older: it takes up those
// of its own version.
const Version = 3

// A Key is a sandbox's own. The guest has it from the first hello, shows it when it
// dials again after its connections broke, and is known by it. The zero Key is none.
type Key [32]byte

// Known reports whether k is a key at all.
func (k Key) Known() bool { return k != Key{} }

// What both ends know without asking.
const (
	MTU       = 65000            // of the sandbox's interface, and the largest packet in a frame
	Interface = "enclave0"       // the sandbox's only interface but the loopback
	Address4  = "198.18.0.2"     // of Interface, /32
	Address6  = "fd00:656e::2"   // of Interface, /128
	WorkDir   = "/work"          // the workload's directory and home
	RunDir    = "/run/enclave"   // where the guest keeps code and the result socket; a tmpfs of the backend's
	GuestName = "enclave-guest"  // the guest program's file, beside SockName
	SockName  = "sock"           // the socket's file, in the directory the backend mounts
	Socket    = "/.enclave/sock" // where a backend mounts it unless it says otherwise
	Guest     = "/.enclave/enclave-guest"
)

// The caps of what a sandbox may send in one piece.
const (
	MaxChunk   = 64 << 10 // bytes of output in one event
	MaxResult  = 1 << 20  // bytes of a result
	MaxDepth   = 256      // nesting of a result
	MaxEntries = 10000    // names in one listing of a directory
	// MaxUnacknowledged is what a guest keeps of a process's log that the core has
	// not acknowledged, but for the frame that crosses it: then the process waits.
	MaxUnacknowledged = 1 << 20
	maxReply          = 4 << 20  // bytes of the JSON that answers a call
	maxError          = 4 << 10  // bytes of the JSON that refuses one
	maxHeader         = 16 << 10 // bytes of the headers of a response
)
