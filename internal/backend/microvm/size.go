package microvm

import (
	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/local/watch"
)

const (
	// guestMemory is what the guest's kernel, its first program and what that keeps
	// in memory take: what a boot of the stock kernel uses, and as much again.
	guestMemory = 192 << 20

	// pageShare is the part of its memory, as a divisor, that a kernel takes to
	// describe it: 64 bytes for each page of 4,096.
	pageShare = 64

	mib = 1 << 20
)

// walls are what workloads in machines may take beyond their limits. The files of
// /work and /tmp are memory of the workload's group in the guest.
var walls = watch.Walls{PerTask: 2 << 20, Tasks: 32, Spare: 32, FilesInMemory: true}

// guestMiB is the machine's memory: as much as its workload can take, so that
// the group of the workload runs out before the guest's kernel does. The host
// gives a page of it only once the guest has touched it.
func guestMiB(l backend.Limits) int64 {
	n := walls.MemoryAt(l) + guestMemory
	n += n / (pageShare - 1)
	return (n + mib - 1) / mib
}

// A cost is what a machine takes of the host beside its guest's memory.
type cost struct {
	memory int64 // bytes
	tasks  int64
}

// hostMemory is the host's wall: what the machine's group of processes uses at
// most, the guest's memory included.
func hostMemory(l backend.Limits, c cost) int64 { return guestMiB(l)*mib + c.memory }

// footprint is what a machine takes of the host at most.
func footprint(l backend.Limits, c cost) backend.Footprint {
	return backend.Footprint{Memory: hostMemory(l, c), Tasks: c.tasks}
}

// FootprintQEMU is what a machine under QEMU takes of the host at most.
func FootprintQEMU(l backend.Limits) backend.Footprint { return footprint(l, byQEMU{}.cost()) }

// FootprintFirecracker is the same under Firecracker.
func FootprintFirecracker(l backend.Limits) backend.Footprint {
	return footprint(l, byJailer{}.cost())
}
