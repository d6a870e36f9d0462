package microvm

import "github.com/enclave-run/enclave/internal/backend"

const (
	// taskMemory is what a workload may use more for each of its tasks: the kernel
	// keeps that much for a process, so that a fork bomb is found by its number
	// before its weight.
	taskMemory = 2 << 20

	// maxTasks bounds the head room that a high limit of tasks gives.
	maxTasks = 512

	// taskWall is how many tasks beyond Limits.Pids a workload gets before the
	// guest's kernel refuses more. Between the limit and the wall lies the evidence.
	taskWall = 32

	// diskWall is how many bytes beyond Limits.Disk the file system of /work and
	// /tmp takes before it is full, for the same reason.
	diskWall = 8 << 20

	// guestMemory is what the guest's kernel, its first program and what that keeps
	// in memory take: what a boot of the stock kernel uses, and as much again.
	guestMemory = 192 << 20

	// pageShare is the part of its memory, as a divisor, that a kernel takes to
	// describe it: 64 bytes for each page of 4,096.
	pageShare = 64

	mib = 1 << 20
)

// memoryAllowed is what a workload with so many tasks may use, beside the files
// in /work and /tmp, which are limited as disk.
func memoryAllowed(l backend.Limits, tasks int64) int64 {
	return l.Memory + min(max(tasks, 0), maxTasks)*taskMemory
}

// memoryWall is where the guest's kernel kills. The files of /work and /tmp are
// memory of the workload's group there.
func memoryWall(l backend.Limits) int64 {
	return memoryAllowed(l, l.Pids+taskWall) + l.Disk + diskWall
}

// tasksWall is how many tasks a workload has at most.
func tasksWall(l backend.Limits) int64 { return l.Pids + taskWall }

// guestMiB is the machine's memory: as much as its workload can take, so that
// the group of the workload runs out before the guest's kernel does. The host
// gives a page of it only once the guest has touched it.
func guestMiB(l backend.Limits) int64 {
	n := memoryWall(l) + guestMemory
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
