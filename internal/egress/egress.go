// Package egress decides where a session may go. It does no I/O: package
// gateway resolves, asks, records and dials.
package egress

import "net/netip"

// A Grant is what a session may do with the network: the policy as its creator
// wrote it, validated, and how many bytes may cross. It crosses process
// boundaries as JSON. The zero Grant denies everything.
type Grant struct {
	Mode   string   `json:"mode"` // "deny_all" or "allowlist"
	Allow  []string `json:"allow,omitempty"`
	Budget int64    `json:"budget"` // bytes in and out together
}

// Traffic is what crossed.
type Traffic struct {
	In, Out int64 // bytes of payload to and from the sandbox
	Spent   bool  // the budget was exceeded and the session was cut off
}

// A Target is where a workload wants to go. Host is a canonical name or the
// text of an address.
type Target struct {
	Host string
	Port uint16
}

// A Decision is the answer to one attempt. It is made in two steps: Decide
// judges the name, Pin judges the addresses it resolved to. Only a Decision
// that passed both has an address, and the gateway dials nothing else.
//
// The zero Decision is a denial.
type Decision struct {
	Target Target
	Reason Reason
	Rule   string // the rule that names the host and port, as written; kept if Pin refuses
	// named is set by Decide, if a rule allows the target, and taken by Pin.
	named   bool
	literal netip.Addr // if the target is an address
	addr    netip.AddrPort
}

// Addr returns the only address this decision permits to dial.
// It reports false unless the attempt is allowed.
func (d Decision) Addr() (netip.AddrPort, bool) { return d.addr, d.addr.IsValid() }

// Reason explains a Decision, for the audit log. The set is closed.
type Reason string

const (
	NotAllowed        Reason = "not_allowed"      // no rule names the host and port
	ReservedAddress   Reason = "reserved_address" // loopback, private, link-local, metadata...
	BadHost           Reason = "bad_host"         // not a name or address we can normalize
	NoAddress         Reason = "no_address"       // the name did not resolve, or nothing answered there
	NameMismatch      Reason = "name_mismatch"    // SNI or Host is not the name that was looked up
	EncryptedName     Reason = "encrypted_name"   // an Encrypted Client Hello, or an earlier draft of one
	BadProtocol       Reason = "protocol"         // not TCP, or not what the port is for
	MethodOrPath      Reason = "method_or_path"
	BindingNotGranted Reason = "binding_not_granted"
	UpstreamTLS       Reason = "upstream_tls"
	OverBudget        Reason = "budget"
	Floor             Reason = "floor"
	Allowed           Reason = "allowed"
)
