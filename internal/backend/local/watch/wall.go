package watch

import "github.com/enclave-run/enclave/internal/backend"

const (
	// DiskRoom is how many bytes beyond Limits.Disk /work and /tmp take together
	// before they are full. Between the limit and the wall lies the evidence: what is
	// refused at the limit leaves none.
	DiskRoom = 8 << 20

	// mostTasks bounds the head room of memory that a high limit of tasks gives.
	mostTasks = 512
)

// Walls are what the sandboxes of a driver may take beyond their limits before a
// kernel refuses more. Between a limit and its wall lies the evidence of a breach; a
// wall holds however late somebody looks.
type Walls struct {
	// Own is the memory of a sandbox that is not its workload's.
	Own int64
	// PerTask is the memory that a kernel keeps for each task of a workload: it may be
	// used beyond Limits.Memory, so that a fork bomb is found by its number before its
	// weight.
	PerTask int64
	// Tasks is how many tasks beyond Limits.Pids a workload gets.
	Tasks int64
	// Spare is for how many of those the wall of memory has room.
	Spare int64
	// FilesInMemory is whether the files of /work and /tmp are memory of the sandbox.
	FilesInMemory bool
}

// Allowed is the memory that a sandbox with so many tasks may use, beside the files
// in /work and /tmp, which are limited as disk.
func (w Walls) Allowed(l backend.Limits, tasks int64) int64 {
	return l.Memory + w.Own + min(max(tasks, 0), mostTasks)*w.PerTask
}

// MemoryAt is where the kernel kills for memory.
func (w Walls) MemoryAt(l backend.Limits) int64 {
	at := w.Allowed(l, l.Pids+w.Spare)
	if w.FilesInMemory {
		at += w.DiskAt(l)
	}
	return at
}

// TasksAt is how many tasks a workload has at most.
func (w Walls) TasksAt(l backend.Limits) int64 { return l.Pids + w.Tasks }

// DiskAt is how many bytes /work and /tmp have at most.
func (w Walls) DiskAt(l backend.Limits) int64 { return l.Disk + DiskRoom }
