package egress

import (
	"errors"
	"strings"
)

// MaxHello bounds the bytes of a connection that are read to see its
// ClientHello, record headers included.
const MaxHello = 16 << 10

var (
	// ErrIncomplete means that what came may be the start of a ClientHello and
	// more is needed.
	ErrIncomplete = errors.New("the ClientHello is incomplete")
	// ErrNotTLS means that no bytes that follow would make it a ClientHello of at
	// most MaxHello bytes.
	ErrNotTLS = errors.New("not a TLS ClientHello")
)

// A Hello is what a TLS ClientHello says about where its sender wants to go.
type Hello struct {
	// SNI is true if there is a server_name extension. Without one, the server
	// decides by itself who it is.
	SNI bool
	// Name is the canonical server name; empty if there is none or it is not a
	// name: an address, which RFC 6066 forbids, or bytes that Canonical refuses.
	Name string
	// Encrypted is true if an encrypted name may be offered, in which case another
	// name may be the one that counts: an Encrypted Client Hello (RFC 9849), or
	// whatever else is in the code points that its drafts and ESNI were tried on.
	// Only the server can tell a real one from grease.
	Encrypted bool
}

// Judge says what h means for a connection to host, which is canonical:
// Allowed if h names host and nothing else can be hidden in it. A connection to
// an address names nobody, as RFC 6066 has it.
func (h Hello) Judge(host string) Reason {
	_, address := literal(host)
	switch {
	case h.Encrypted:
		return EncryptedName
	case address && !h.SNI:
		return Allowed
	case !address && h.SNI && h.Name != "" && h.Name == host:
		return Allowed
	}
	return NameMismatch
}

// Sniff reads the ClientHello at the start of a connection of which b is what
// has come so far. It looks at no more than MaxHello bytes, and is strict where
// servers differ: one host_name, no extension twice, nothing after the hello in
// its records.
//
// A second ClientHello, after a HelloRetryRequest, is not seen; a server must
// refuse one with another name (RFC 8446, section 4.1.2).
func Sniff(b []byte) (Hello, error) {
	whole := len(b) >= MaxHello
	msg, err := handshake(b[:min(len(b), MaxHello)])
	if err == nil {
		return parseHello(msg)
	}
	if errors.Is(err, ErrIncomplete) && whole {
		return Hello{}, ErrNotTLS
	}
	return Hello{}, err
}

// handshake returns the body of the ClientHello that the records in b carry.
func handshake(b []byte) ([]byte, error) {
	const (
		recordHandshake = 22
		maxRecord       = 1 << 14 // RFC 8446, section 5.1
		typeClientHello = 1
	)
	var msg []byte
	for len(b) > 0 {
		if b[0] != recordHandshake || len(b) > 1 && b[1] != 3 {
			return nil, ErrNotTLS
		}
		if len(b) < 5 {
			return nil, ErrIncomplete
		}
		n := int(b[3])<<8 | int(b[4])
		if n == 0 || n > maxRecord {
			return nil, ErrNotTLS
		}
		part := b[5:min(len(b), 5+n)]
		msg = append(msg, part...)
		if len(msg) > 0 && msg[0] != typeClientHello {
			return nil, ErrNotTLS
		}
		if len(msg) >= 4 {
			size := int(msg[1])<<16 | int(msg[2])<<8 | int(msg[3])
			if size > MaxHello || len(msg)-len(part)+n > 4+size {
				return nil, ErrNotTLS // too long, or more in its last record
			}
			if len(msg) == 4+size {
				return msg[4:], nil
			}
		}
		if len(part) < n {
			return nil, ErrIncomplete
		}
		b = b[5+n:]
	}
	return nil, ErrIncomplete
}

// parseHello reads the body of a ClientHello (RFC 8446, section 4.1.2).
func parseHello(msg []byte) (Hello, error) {
	const (
		extServerName   = 0
		versionAndNonce = 2 + 32
	)
	r := reader(msg)
	fixed := r.take(versionAndNonce)
	r.vector8() // session id
	suites := r.vector16()
	compression := r.vector8()
	if r == nil || fixed[0] != 3 || len(suites) == 0 || len(suites)%2 != 0 || len(compression) == 0 {
		return Hello{}, ErrNotTLS
	}
	var h Hello
	if len(r) == 0 { // no extensions at all, as before TLS 1.2
		return h, nil
	}
	exts := reader(r.vector16())
	if r == nil || len(r) != 0 {
		return Hello{}, ErrNotTLS
	}
	seen := map[uint16]bool{}
	for len(exts) > 0 {
		kind := exts.uint16()
		data := exts.vector16()
		if exts == nil || seen[kind] {
			return Hello{}, ErrNotTLS
		}
		seen[kind] = true
		switch {
		case kind == extServerName:
			name, ok := serverName(data)
			if !ok {
				return Hello{}, ErrNotTLS
			}
			h.SNI, h.Name = true, name
		case mayEncryptName(kind):
			h.Encrypted = true
		}
	}
	return h, nil
}

// mayEncryptName reports whether an extension may hold an encrypted name. Each
// draft of one used another code point, all of them at the top of the registry:
// ESNI 0xffce, ECH 0xff02 and above, then 0xfe08 and above, and 0xfd00 inside. So
// the top is closed as a whole, private use (RFC 8447) included. Only
// renegotiation_info (RFC 5746), which most clients send, is known to be harmless.
func mayEncryptName(kind uint16) bool {
	const (
		top               = 0xfd00
		renegotiationInfo = 0xff01
	)
	return kind >= top && kind != renegotiationInfo
}

// serverName reads a server_name extension (RFC 6066, section 3). It reports
// false unless there is exactly one name, of the type host_name. A name that
// isn't one is empty.
func serverName(data []byte) (string, bool) {
	r := reader(data)
	list := reader(r.vector16())
	if r == nil || len(r) != 0 {
		return "", false
	}
	kind := list.take(1)
	raw := list.vector16()
	if list == nil || len(list) != 0 || kind[0] != 0 || len(raw) == 0 {
		return "", false
	}
	name, err := Canonical(string(raw))
	if _, address := literal(name); err != nil || address || strings.HasSuffix(string(raw), ".") {
		return "", true
	}
	return name, true
}

// A reader takes values off the front of bytes. A read past the end makes it
// nil and yields nothing, as does every read after that; a reader that was read
// to its end is empty but not nil.
type reader []byte

func (r *reader) take(n int) []byte {
	if *r == nil || n > len(*r) {
		*r = nil
		return nil
	}
	b := (*r)[:n:n]
	*r = (*r)[n:]
	return b
}

func (r *reader) uint16() uint16 {
	if b := r.take(2); b != nil {
		return uint16(b[0])<<8 | uint16(b[1])
	}
	return 0
}

func (r *reader) vector8() []byte {
	if b := r.take(1); b != nil {
		return r.take(int(b[0]))
	}
	return nil
}

func (r *reader) vector16() []byte {
	if b := r.take(2); b != nil {
		return r.take(int(b[0])<<8 | int(b[1]))
	}
	return nil
}
