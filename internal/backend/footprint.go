package backend

// A Footprint is what one sandbox takes of the host at most: where the walls
// stand that its backend builds, not where its limits do. Zero is nothing.
type Footprint struct {
	Memory int64 // bytes, files that are memory included
	Disk   int64 // bytes of the file system that the backend's directory is on
	Tasks  int64 // processes and threads, the backend's own for it included
}

// A Sizer is a backend that says what its sandboxes take. Control has a sandbox
// wait until the host has room for its footprint, so that the walls of all
// sandboxes together are within the host. Where control is told what the host
// has, it refuses a backend that lacks this interface.
type Sizer interface {
	// Footprint does no I/O, and its result for the same limits never changes.
	// The limits are as in Spec.
	Footprint(Limits) Footprint
}
