//go:build !failpoint

package failpoint

// Enabled reports whether this program was built with failpoints.
const Enabled = false

// Hit returns nil.
func Hit(string) error { return nil }
