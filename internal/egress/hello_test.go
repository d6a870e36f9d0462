package egress

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

// fakeConn is a connection of which what is written is kept and what is read
// was given.
type fakeConn struct {
	in  io.Reader
	out bytes.Buffer
}

func (c *fakeConn) Read(b []byte) (int, error)         { return c.in.Read(b) }
func (c *fakeConn) Write(b []byte) (int, error)        { return c.out.Write(b) }
func (c *fakeConn) Close() error                       { return nil }
func (c *fakeConn) LocalAddr() net.Addr                { return &net.TCPAddr{} }
func (c *fakeConn) RemoteAddr() net.Addr               { return &net.TCPAddr{} }
func (c *fakeConn) SetDeadline(t time.Time) error      { return nil }
func (c *fakeConn) SetReadDeadline(t time.Time) error  { return nil }
func (c *fakeConn) SetWriteDeadline(t time.Time) error { return nil }

// clientHello returns what crypto/tls sends first.
func clientHello(t testing.TB, config *tls.Config) []byte {
	t.Helper()
	c := &fakeConn{in: strings.NewReader("")}
	if err := tls.Client(c, config).Handshake(); err == nil {
		t.Fatal("the handshake succeeded with nobody")
	}
	if c.out.Len() == 0 {
		t.Fatal("the client sent nothing")
	}
	return c.out.Bytes()
}

// encryptedNames are the code points that encrypted names have had: RFC 9849,
// draft-ietf-tls-esni-00 to -18, and what is only ever inside one.
var encryptedNames = []uint16{
	0xffce,                                 // ESNI, drafts 00 to 06
	0xff02, 0xff03, 0xff04, 0xff07, 0xff08, // ECH, draft 07 and what was tried around it
	0xfe08, 0xfe09, 0xfe0a, 0xfe0b, 0xfe0c, // ECH, drafts 08 to 12
	0xfe0d, // ECH, draft 13 to the RFC
	0xfd00, // ech_outer_extensions
}

// serverSees returns what a crypto/tls server reads of the same bytes: false if
// it does not take them for a ClientHello.
func serverSees(b []byte) (name string, ech, ok bool) {
	config := &tls.Config{GetConfigForClient: func(i *tls.ClientHelloInfo) (*tls.Config, error) {
		name, ok = i.ServerName, true
		for _, e := range i.Extensions {
			ech = ech || slices.Contains(encryptedNames, e) || e > 0xfd00 && e != 0xff01
		}
		return nil, errors.New("seen")
	}}
	_ = tls.Server(&fakeConn{in: bytes.NewReader(b)}, config).HandshakeContext(context.Background())
	return name, ech, ok
}

// echConfigList encodes an ECHConfigList (RFC 9849, section 4) for outer.
func echConfigList(t testing.TB, outer string) []byte {
	t.Helper()
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	vector := func(b []byte) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...) }
	var c []byte
	c = append(c, 1)                                                           // config id
	c = binary.BigEndian.AppendUint16(c, 0x20)                                 // DHKEM(X25519, HKDF-SHA256)
	c = append(c, vector(key.PublicKey().Bytes())...)                          //
	c = append(c, vector([]byte{0, 1, 0, 1})...)                               // HKDF-SHA256, AES-128-GCM
	c = append(c, 32, byte(len(outer)))                                        // greatest name length
	c = append(append(c, outer...), 0, 0)                                      // no extensions
	config := append(binary.BigEndian.AppendUint16(nil, 0xfe0d), vector(c)...) // version
	return vector(config)
}

// records puts the handshake message in hello into records of n bytes.
func records(hello []byte, n int) []byte {
	var msg, out []byte
	for b := hello; len(b) > 0; {
		size := int(b[3])<<8 | int(b[4])
		msg, b = append(msg, b[5:5+size]...), b[5+size:]
	}
	for len(msg) > 0 {
		k := min(n, len(msg))
		out = append(append(out, 22, 3, 1, byte(k>>8), byte(k)), msg[:k]...)
		msg = msg[k:]
	}
	return out
}

// helloOf builds a minimal ClientHello in one record with these extensions.
func helloOf(exts ...[]byte) []byte {
	body := start + "\x00" + "\x00\x02\x13\x01" + "\x01\x00" // session id, one suite, no compression
	if exts != nil {
		all := bytes.Join(exts, nil)
		body += string(binary.BigEndian.AppendUint16(nil, uint16(len(all)))) + string(all)
	}
	return helloWith(body)
}

// start is the version and the random of a ClientHello.
var start = "\x03\x03" + strings.Repeat("r", 32)

// helloWith puts the body of a ClientHello in one record.
func helloWith(body string) []byte {
	msg := append([]byte{1, byte(len(body) >> 16), byte(len(body) >> 8), byte(len(body))}, body...)
	return append([]byte{22, 3, 1, byte(len(msg) >> 8), byte(len(msg))}, msg...)
}

func ext(kind uint16, data string) []byte {
	b := binary.BigEndian.AppendUint16(nil, kind)
	return append(binary.BigEndian.AppendUint16(b, uint16(len(data))), data...)
}

// sni is a server_name extension with one entry.
func sni(name string) []byte {
	n := len(name)
	return ext(0, string([]byte{byte((n + 3) >> 8), byte(n + 3), 0, byte(n >> 8), byte(n)})+name)
}

func realHellos(t testing.TB) map[string][]byte {
	protocols := make([]string, 100)
	for i := range protocols {
		protocols[i] = strings.Repeat(string(rune('a'+i%26)), 100)
	}
	return map[string][]byte{
		"usual":   clientHello(t, &tls.Config{ServerName: "api.example.com"}),
		"TLS 1.2": clientHello(t, &tls.Config{ServerName: "api.example.com", MaxVersion: tls.VersionTLS12}),
		"large":   clientHello(t, &tls.Config{ServerName: "api.example.com", NextProtos: protocols}),
		"ECH": clientHello(t, &tls.Config{ServerName: "evil.example.com", MinVersion: tls.VersionTLS13,
			EncryptedClientHelloConfigList: echConfigList(t, "api.example.com")}),
		"an address": clientHello(t, &tls.Config{ServerName: "93.184.216.34"}),
		"no name":    clientHello(t, &tls.Config{InsecureSkipVerify: true}),
		"any case":   clientHello(t, &tls.Config{ServerName: "API.Example.com"}),
	}
}

func TestRealHellosAreRead(t *testing.T) {
	want := map[string]Hello{
		"usual":      {SNI: true, Name: "api.example.com"},
		"TLS 1.2":    {SNI: true, Name: "api.example.com"},
		"large":      {SNI: true, Name: "api.example.com"},
		"ECH":        {SNI: true, Name: "api.example.com", Encrypted: true},
		"an address": {},
		"no name":    {},
		"any case":   {SNI: true, Name: "api.example.com"},
	}
	for kind, b := range realHellos(t) {
		for _, size := range []int{1 << 14, 1000, 37} {
			split := records(b, size)
			if len(split) > MaxHello {
				continue
			}
			h, err := Sniff(split)
			if err != nil || h != want[kind] {
				t.Errorf("%s in records of %d: %+v, %v, want %+v", kind, size, h, err, want[kind])
			}
			for i := range split {
				if _, err := Sniff(split[:i]); !errors.Is(err, ErrIncomplete) {
					t.Fatalf("%s in records of %d: the first %d of %d bytes: %v", kind, size, i, len(split), err)
				}
			}
			// What follows in records of its own, such as early data, is not looked at.
			if h, err := Sniff(append(split, 23, 3, 3, 0, 1, 0)); err != nil || h != want[kind] {
				t.Errorf("%s and more: %+v, %v", kind, h, err)
			}
		}
		name, ech, ok := serverSees(b)
		if h := want[kind]; !ok || strings.ToLower(name) != h.Name || ech != h.Encrypted {
			t.Errorf("%s: a server sees %q, %v, %v", kind, name, ech, ok)
		}
	}
}

func TestNotTLSIsKnownEarly(t *testing.T) {
	usual := clientHello(t, &tls.Config{ServerName: "api.example.com"})
	edit := func(f func(b []byte) []byte) []byte { return f(bytes.Clone(usual)) }
	name := func(entries string) []byte {
		return helloOf(ext(0, string([]byte{byte(len(entries) >> 8), byte(len(entries))})+entries))
	}
	for what, b := range map[string][]byte{
		"HTTP":                         []byte("G"),
		"SSH":                          []byte("SSH-2.0-"),
		"an SSLv2 hello":               {0x80, 0x2e, 1, 3, 1},
		"an alert":                     {21, 3, 1, 0, 2, 1, 0},
		"another major version":        {22, 2},
		"an empty record":              {22, 3, 1, 0, 0},
		"a record over 2^14":           {22, 3, 1, 0x40, 1},
		"a ServerHello":                {22, 3, 3, 0, 4, 2},
		"a hello of 2^24":              {22, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff},
		"an alert within the hello":    append(bytes.Clone(records(usual, 50)[:55]), 21, 3, 1, 0, 2, 1, 0),
		"another message after it":     edit(func(b []byte) []byte { b[4]++; return append(b, 0) }),
		"no suites":                    helloWith(start + "\x00" + "\x00\x00" + "\x01\x00"),
		"half a suite":                 helloWith(start + "\x00" + "\x00\x03\x13\x01\x13" + "\x01\x00"),
		"no compression":               helloWith(start + "\x00" + "\x00\x02\x13\x01" + "\x00"),
		"a version of its own":         helloWith("\x04" + start[1:] + "\x00" + "\x00\x02\x13\x01" + "\x01\x00"),
		"a session id that runs out":   helloWith(start + "\xff"),
		"bytes after the extensions":   helloWith(start + "\x00" + "\x00\x02\x13\x01" + "\x01\x00" + "\x00\x00" + "x"),
		"two names":                    name("\x00\x00\x01a\x00\x00\x01b"),
		"a name of another type":       name("\x01\x00\x01a"),
		"a name of two types":          name("\x00\x00\x01a\x01\x00\x01b"),
		"an empty name":                name("\x00\x00\x00"),
		"no name in the list":          name(""),
		"an empty server_name":         helloOf(ext(0, "")),
		"a name longer than the list":  helloOf(ext(0, "\x00\x04\x00\x00\x09a")),
		"a list shorter than the data": helloOf(ext(0, "\x00\x04\x00\x00\x01ab")),
		"server_name twice":            helloOf(sni("api.example.com"), sni("evil.example.com")),
		"any extension twice":          helloOf(ext(10, ""), ext(10, "")),
		"half an extension":            helloOf([]byte{0, 0, 0}),
		"an extension that runs out":   helloOf([]byte{0, 10, 0, 5, 0}),
	} {
		if h, err := Sniff(b); !errors.Is(err, ErrNotTLS) {
			t.Errorf("%s: %+v, %v, want ErrNotTLS", what, h, err)
		}
	}
	// An endless hello is cut off at MaxHello.
	endless := records(append([]byte{22, 3, 1, 0x40, 0, 1, 0, 0x40, 0}, make([]byte, 1<<14-4)...), 1)
	if _, err := Sniff(endless[:MaxHello-1]); !errors.Is(err, ErrIncomplete) {
		t.Errorf("just below MaxHello: %v", err)
	}
	for _, n := range []int{MaxHello, MaxHello + 1} {
		if _, err := Sniff(endless[:n]); !errors.Is(err, ErrNotTLS) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

func TestHelloIsJudged(t *testing.T) {
	ech, outer := ext(0xfe0d, "\x00"), ext(0xfd00, "")
	for _, c := range []struct {
		hello []byte
		host  string
		want  Reason
	}{
		{helloOf(sni("api.example.com")), "api.example.com", Allowed},
		{helloOf(sni("API.example.COM")), "api.example.com", Allowed},
		{helloOf(ext(10, ""), sni("api.example.com"), ext(16, "")), "api.example.com", Allowed},
		{helloOf(sni("xn--bcher-kva.example")), "xn--bcher-kva.example", Allowed},
		{helloOf(sni("evil.example.com")), "api.example.com", NameMismatch},
		{helloOf(sni("example.com")), "api.example.com", NameMismatch},
		{helloOf(sni("api.example.com.")), "api.example.com", NameMismatch},
		{helloOf(sni("api.example.com\x00.evil.example")), "api.example.com", NameMismatch},
		{helloOf(sni("93.184.216.34")), "93.184.216.34", NameMismatch},
		{helloOf(sni("localhost")), "api.example.com", NameMismatch},
		{helloOf(ext(10, "")), "api.example.com", NameMismatch},
		{helloOf(), "api.example.com", NameMismatch},
		{helloOf(), "93.184.216.34", Allowed},
		{helloOf(ext(10, "")), "2606:4700::1", Allowed},
		{helloOf(sni("evil.example.com")), "93.184.216.34", NameMismatch},
		{helloOf(sni("\x00")), "93.184.216.34", NameMismatch},
		{helloOf(sni("api.example.com"), ech), "api.example.com", EncryptedName},
		{helloOf(ech, sni("api.example.com")), "api.example.com", EncryptedName},
		{helloOf(sni("api.example.com"), outer), "api.example.com", EncryptedName},
		{helloOf(ech), "93.184.216.34", EncryptedName},
		{helloOf(sni("evil.example.com"), ech), "api.example.com", EncryptedName},
	} {
		h, err := Sniff(c.hello)
		if err != nil {
			t.Errorf("%q: %v", c.hello, err)
		}
		if got := h.Judge(c.host); got != c.want {
			t.Errorf("%+v for %s is %s, want %s", h, c.host, got, c.want)
		}
	}
	if got := (Hello{}).Judge("api.example.com"); got != NameMismatch {
		t.Errorf("the zero Hello is %s", got)
	}
}

// A server of any draft is offered a name that nobody here can read.
func TestEveryCodePointOfAnEncryptedNameIsOne(t *testing.T) {
	for _, kind := range append([]uint16{0xff0a, 0xffff}, encryptedNames...) {
		for what, b := range map[string][]byte{
			"empty":       helloOf(sni("api.example.com"), ext(kind, "")),
			"before":      helloOf(ext(kind, "\x13\x01"), sni("api.example.com")),
			"for another": helloOf(sni("evil.example.com"), ext(kind, "\x13\x01")),
			"alone":       helloOf(ext(kind, "\x13\x01")),
		} {
			if h, err := Sniff(b); err != nil || h.Judge("api.example.com") != EncryptedName {
				t.Errorf("%#x, %s: %+v, %v", kind, what, h, err)
			}
		}
		if h, err := Sniff(helloOf(ext(kind, ""))); err != nil || h.Judge("93.184.216.34") != EncryptedName {
			t.Errorf("%#x to an address: %+v, %v", kind, h, err)
		}
	}
	// What clients send is not taken for one: grease (RFC 8701), renegotiation_info,
	// and what browsers have of their own.
	for _, kind := range []uint16{0xff01, 0xfafa, 0xeaea, 0x4469, 0x44cd, 0x7550, 0x3374} {
		if h, err := Sniff(helloOf(sni("api.example.com"), ext(kind, "\x00"))); err != nil || h.Judge("api.example.com") != Allowed {
			t.Errorf("%#x: %+v, %v", kind, h, err)
		}
	}
}

// FuzzSniff compares with the server of crypto/tls, which reads on its own: what
// Sniff lets pass for a name is what a server is asked for.
func FuzzSniff(f *testing.F) {
	for _, b := range realHellos(f) {
		f.Add(b)
		f.Add(records(b, 100))
	}
	for _, b := range [][]byte{
		helloOf(), helloOf(sni("api.example.com")), helloOf(sni("a.example"), ext(0xfe0d, "")), helloOf(sni("a.example"), ext(0xffce, "")), helloOf(sni("a.example"), ext(0xff01, "\x00")), helloOf(ext(10, ""), ext(10, "")),
		helloOf(sni("a.example"), sni("b.example")),
	} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := Sniff(b)
		if err != nil {
			if !errors.Is(err, ErrNotTLS) && !errors.Is(err, ErrIncomplete) || h != (Hello{}) {
				t.Fatalf("%+v, %v", h, err)
			}
			if errors.Is(err, ErrIncomplete) && len(b) >= MaxHello {
				t.Fatal("more is wanted than may be read")
			}
			return
		}
		if h.Name != "" {
			if c, err := Canonical(h.Name); err != nil || c != h.Name || !h.SNI {
				t.Fatalf("the name %q is not canonical", h.Name)
			}
		}
		name, ech, ok := serverSees(b)
		if !ok {
			return
		}
		if ech != h.Encrypted || (name != "") != h.SNI {
			t.Fatalf("%+v, but a server sees %q, %v", h, name, ech)
		}
		if h.Name != "" && h.Name != strings.ToLower(name) {
			if c, err := Canonical(name); err != nil || c != h.Name {
				t.Fatalf("%+v, but a server sees %q", h, name)
			}
		}
	})
}
