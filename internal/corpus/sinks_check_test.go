package corpus

import (
	"io"
	"os/exec"
	"slices"
	"testing"
)

// A sink that heard nothing must mean that nothing was sent.
func TestSinksHearWhateverIsSent(t *testing.T) {
	s := newSinks(t)
	nonce := random()
	if err := s.begin(nonce); err != nil {
		t.Fatal(err)
	}
	if got, err := s.hits(); err != nil || len(got) > 0 {
		t.Fatalf("a silent network has %v, error %v", got, err)
	}
	conn, err := s.DialContext(t.Context(), "tcp", sink4+":4444")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, nonce); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	out, err := exec.CommandContext(t.Context(), "nsenter", "--net="+s.path(), "python3", "-c", `
import socket, urllib.request
n = b"`+nonce+`"
i = socket.if_nametoindex("eth0")
socket.socket(2, 2).sendto(n, ("`+sink4+`", 9999))
socket.socket(10, 2).sendto(n, ("`+sink6+`", 9999))
socket.socket(10, 2).sendto(n, ("ff02::1", 9999, 0, i))
socket.socket(2, 2, 1).sendto(b"\x08\0\0\0\0\0\0\0" + n, ("`+sink4+`", 0))
s = socket.socket(17, 3, socket.htons(0x806)); s.bind(("eth0", 0)); s.send(b"\xff" * 6 + b"\2\0\0\0\0\1\x08\6" + n)
socket.create_connection(("`+privateIP+`", 22)).sendall(n)
urllib.request.urlopen("http://metadata.google.internal/"+n.decode()).read()
`).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	// The program has ended; a listener hears its last bytes in its own time.
	var got []hit
	for len(got) < 16 && t.Context().Err() == nil {
		more, err := s.hits()
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, more...)
	}
	for _, want := range []hit{
		{"dial", sink4 + ":4444"}, {"nonce", "tcp " + sink4 + ":4444"}, {"nonce", "udp " + sink4 + ":9999"}, {"nonce", "udp [" + sink6 + "]:9999"},
		{"nonce", "udp [ff02::1]:9999"}, {"nonce", "icmp " + sink4}, {"nonce", "frame"}, {"nonce", "tcp " + privateIP + ":22"}, {"nonce", "tcp " + metadataIP + ":80"},
	} {
		if !slices.Contains(got, want) {
			t.Errorf("%v was not heard; heard were %v", want, got)
		}
	}
}
