package vsock

import "golang.org/x/sys/unix"

// A backlog is what the guest has sent and a program of the host's has not
// taken yet: a circle of bytes that grows up to the window, and no further.
type backlog struct {
	buf        []byte // its length is 0 or a power of two
	start, end uint64 // of what it holds, modulo len(buf)
}

func (b *backlog) len() int { return int(b.end - b.start) }

// add appends p, for which there is room: the window is checked before.
func (b *backlog) add(p []byte) {
	if need := b.len() + len(p); need > len(b.buf) {
		size := max(len(b.buf), 4<<10)
		for size < need {
			size *= 2
		}
		grown := backlog{buf: make([]byte, size)}
		for _, piece := range b.pieces(nil) {
			grown.add(piece)
		}
		*b = grown
	}
	at := int(b.end) & (len(b.buf) - 1)
	n := copy(b.buf[at:], p)
	copy(b.buf, p[n:])
	b.end += uint64(len(p))
}

// pieces appends the one or two slices to to that b consists of.
func (b *backlog) pieces(to [][]byte) [][]byte {
	if b.len() == 0 {
		return to
	}
	from, until := int(b.start)&(len(b.buf)-1), int(b.end)&(len(b.buf)-1)
	if from < until {
		return append(to, b.buf[from:until])
	}
	to = append(to, b.buf[from:])
	if until > 0 {
		to = append(to, b.buf[:until])
	}
	return to
}

// write passes on as much as the socket fd takes, and returns how much that is.
// The error is nil also if the socket takes no more for now.
func (b *backlog) write(fd int) (int, error) {
	total := 0
	for b.len() > 0 {
		var room [2][]byte
		n, err := writev(fd, b.pieces(room[:0]))
		if err != nil || n == 0 {
			return total, err
		}
		b.start += uint64(n)
		total += n
	}
	return total, nil
}

// drop forgets what b holds, and its memory.
func (b *backlog) drop() { *b = backlog{} }

// writev returns 0 without an error if fd takes nothing for now.
func writev(fd int, b [][]byte) (int, error) {
	for {
		n, err := unix.Writev(fd, b)
		switch err {
		case nil:
			return n, nil
		case unix.EINTR:
		case unix.EAGAIN:
			return 0, nil
		default:
			return 0, err
		}
	}
}
