package vsock

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A region is a piece of the guest's memory that this process has mapped.
type region struct {
	guest uint64 // where the guest's kernel sees it
	user  uint64 // where the VMM sees it; the rings' addresses are given so
	bytes []byte
}

// memory is what the VMM shares of the guest's. No two regions overlap. The
// guest writes to it at any time: what is decided on is copied out first.
type memory []region

// regionSize is that of a region in a memory table: the guest's address, the
// size, the VMM's address and the offset in the file.
const regionSize = 4 * 8

// maxRegions is the protocol's limit for one memory table.
const maxRegions = 8

// mapMemory maps the regions of a memory table, whose files are fds in the same
// order. It closes none of fds.
//
// A mapped file that gets shorter turns each access beyond its end into SIGBUS,
// which no check beforehand prevents. So it takes only a memfd that is sealed
// against shrinking, as QEMU's memory-backend-memfd is.
func mapMemory(table []byte, fds []int) (m memory, err error) {
	defer func() {
		if err != nil {
			m.unmap()
			m = nil
		}
	}()
	if len(table) < 8 {
		return m, errors.New("memory table is cut off")
	}
	count := binary.LittleEndian.Uint32(table)
	table = table[8:] // the count is followed by padding
	if count > maxRegions || int(count) != len(fds) || len(table) != int(count)*regionSize {
		return m, fmt.Errorf("memory table of %d regions has %d bytes and %d files", count, len(table), len(fds))
	}
	page := uint64(os.Getpagesize())
	for i, fd := range fds {
		field := func(n int) uint64 { return binary.LittleEndian.Uint64(table[i*regionSize+8*n:]) }
		guest, size, user, offset := field(0), field(1), field(2), field(3)
		if size == 0 || guest+size < guest || user+size < user || offset+size < offset || offset+size > math.MaxInt64 {
			return m, fmt.Errorf("memory region %d at %#x of %#x bytes", i, guest, size)
		}
		if guest%page != 0 || size%page != 0 || user%page != 0 || offset%page != 0 {
			return m, fmt.Errorf("memory region %d does not consist of whole pages", i)
		}
		for _, r := range m {
			if overlap(guest, r.guest, size, uint64(len(r.bytes))) || overlap(user, r.user, size, uint64(len(r.bytes))) {
				return m, fmt.Errorf("memory region %d overlaps another", i)
			}
		}
		if err := steady(fd, offset+size); err != nil {
			return m, fmt.Errorf("memory region %d: %w", i, err)
		}
		b, err := unix.Mmap(fd, int64(offset), int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
		if err != nil {
			return m, fmt.Errorf("map memory region %d: %w", i, err)
		}
		m = append(m, region{guest, user, b})
		// A core dump of this process shall not hold the guest's memory.
		if err := unix.Madvise(b, unix.MADV_DONTDUMP); err != nil {
			return m, fmt.Errorf("keep memory region %d out of dumps: %w", i, err)
		}
	}
	return m, nil
}

func overlap(a, b, aSize, bSize uint64) bool { return a < b+bSize && b < a+aSize }

// steady refuses a file that has fewer than size bytes, or may have later.
func steady(fd int, size uint64) error {
	// Ordered so: after the seal was seen, the size can't sink.
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil {
		return fmt.Errorf("ask for the file's seals (it must be a memfd): %w", err)
	}
	if seals&unix.F_SEAL_SHRINK == 0 {
		return errors.New("the file is not sealed against shrinking")
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("ask for the file's size: %w", err)
	}
	if uint64(st.Size) < size {
		return fmt.Errorf("the file has %#x bytes, fewer than %#x", st.Size, size)
	}
	return nil
}

func (m memory) unmap() {
	for _, r := range m {
		// It fails only for what is not mapped.
		_ = unix.Munmap(r.bytes)
	}
}

// ring returns the size bytes at an address of the VMM's, which must be within
// one region and a multiple of align.
func (m memory) ring(user, size, align uint64) ([]byte, error) {
	for _, r := range m {
		if off := user - r.user; user >= r.user && off < uint64(len(r.bytes)) {
			if user%align != 0 || uint64(len(r.bytes))-off < size {
				break
			}
			return r.bytes[off : off+size : off+size], nil
		}
	}
	return nil, fmt.Errorf("%#x bytes at %#x are not in the shared memory, or not aligned to %d", size, user, align)
}

// slices appends to to the pieces that the size bytes at a guest's address are
// made of; there are several where they cross from region to region.
func (m memory) slices(to [][]byte, guest uint64, size uint32) ([][]byte, error) {
	for size > 0 {
		b := m.at(guest)
		if b == nil {
			return nil, fmt.Errorf("%w: a buffer at %#x is outside its memory", ErrGuest, guest)
		}
		b = b[:min(uint64(size), uint64(len(b)))]
		to = append(to, b)
		size -= uint32(len(b))
		guest += uint64(len(b))
	}
	return to, nil
}

// at returns what follows a guest's address in its region, nil if the address
// is in none.
func (m memory) at(guest uint64) []byte {
	for i := range m {
		r := &m[i]
		if off := guest - r.guest; guest >= r.guest && off < uint64(len(r.bytes)) {
			return r.bytes[off:]
		}
	}
	return nil
}

// word returns the aligned 32 bits of shared memory in which b begins, and by
// how many bits they are to be shifted for it. Go has no atomic access to 16
// bits. A region begins and ends with a page, so the word is in it.
func word(b []byte) (*uint32, uint) {
	p := uintptr(unsafe.Pointer(unsafe.SliceData(b)))
	low := p & 3
	return (*uint32)(unsafe.Add(unsafe.Pointer(unsafe.SliceData(b)), -int(low))), uint(low) * 8
}
