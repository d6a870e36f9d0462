package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
)

func TestPacketsSurviveAnyReading(t *testing.T) {
	var sent [][]byte
	for _, n := range []int{1, 2, 20, 1500, MTU - 1, MTU, MTU, MTU, MTU, MTU, 1, 9000} {
		sent = append(sent, bytes.Repeat([]byte{byte(len(sent) + 1)}, n))
	}
	var stream bytes.Buffer
	w := NewPacketWriter(&stream)
	if err := errors.Join(w.Write(sent[:5]...), w.Write(), w.Write(sent[5:]...), w.Mark()); err != nil {
		t.Fatal(err)
	}
	for name, r := range map[string]io.Reader{
		"whole":  bytes.NewReader(stream.Bytes()),
		"bytes":  iotest.OneByteReader(bytes.NewReader(stream.Bytes())),
		"halves": iotest.HalfReader(bytes.NewReader(stream.Bytes())),
		"eof":    iotest.DataErrReader(bytes.NewReader(stream.Bytes())),
	} {
		p := NewPacketReader(r)
		var got [][]byte
		for {
			pkt, err := p.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			got = append(got, bytes.Clone(pkt))
		}
		if diff := cmp.Diff(sent, got, cmp.Comparer(bytes.Equal)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		if _, err := p.Next(); err != io.EOF {
			t.Errorf("%s: after the mark: %v", name, err)
		}
	}
}

func TestPacketWriterRefusesWhatNoReaderTakes(t *testing.T) {
	var stream bytes.Buffer
	w := NewPacketWriter(&stream)
	for _, bad := range [][]byte{nil, {}, make([]byte, MTU+1)} {
		if err := w.Write([]byte{1}, bad); err == nil {
			t.Errorf("wrote a packet of %d bytes", len(bad))
		}
	}
	if stream.Len() != 0 {
		t.Errorf("%d bytes were sent", stream.Len())
	}
}

func FuzzPackets(f *testing.F) {
	f.Add([]byte{0, 1, 'x', 0, 2, 'y', 'z', 0, 0, 'r', 'e', 's', 't'}, 3)
	f.Add([]byte{0xff, 0xff, 1}, 1)
	f.Add([]byte{0, 5, 1}, 2)
	f.Add([]byte{0xfd, 0xe8}, 1)
	f.Add([]byte{0xfd, 0xe9}, 1)
	f.Fuzz(func(t *testing.T, stream []byte, piece int) {
		// The oracle cuts the whole stream at once.
		var want [][]byte
		var end error
		for rest := stream; end == nil; {
			switch {
			case len(rest) < 2:
				end = io.ErrUnexpectedEOF
			case binary.BigEndian.Uint16(rest) == 0:
				end = io.EOF
			case binary.BigEndian.Uint16(rest) > 65000:
				end = ErrProtocol
			case len(rest)-2 < int(binary.BigEndian.Uint16(rest)):
				end = io.ErrUnexpectedEOF
			default:
				n := 2 + int(binary.BigEndian.Uint16(rest))
				want = append(want, rest[2:n])
				rest = rest[n:]
			}
		}
		p := NewPacketReader(&pieces{stream, max(1, piece%4096)})
		for i := 0; ; i++ {
			pkt, err := p.Next()
			if err != nil {
				if !errors.Is(err, end) || i != len(want) {
					t.Fatalf("end: %v after %d packets, want %v after %d", err, i, end, len(want))
				}
				if _, again := p.Next(); again != err {
					t.Fatalf("then %v", again)
				}
				return
			}
			if i >= len(want) || !bytes.Equal(pkt, want[i]) {
				t.Fatalf("packet %d differs", i)
			}
		}
	})
}

// pieces reads b so many bytes at a time.
type pieces struct {
	b []byte
	n int
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.b) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.b[:min(p.n, len(p.b))])
	p.b = p.b[n:]
	return n, nil
}

// A sandbox that sends little costs little: there may be ten thousand of them.
func TestPacketReaderIsSmallUntilMuchIsSent(t *testing.T) {
	var stream bytes.Buffer
	w := NewPacketWriter(&stream)
	small, large := make([]byte, 60), make([]byte, smallBuffer)
	if err := errors.Join(w.Write(small, small), w.Write(large)); err != nil {
		t.Fatal(err)
	}
	p := NewPacketReader(&pieces{stream.Bytes(), FrameHeader + len(small)})
	for i, want := range []int{smallBuffer, smallBuffer, readBuffer} {
		if _, err := p.Next(); err != nil {
			t.Fatal(err)
		}
		if len(p.buf) != want {
			t.Errorf("after packet %d it holds %d bytes, want %d", i+1, len(p.buf), want)
		}
	}
}
