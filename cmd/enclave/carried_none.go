//go:build !carried

package main

import "io/fs"

// carried returns nil: this executable was built without the programs inside,
// and they are looked for beside it.
func carried() fs.FS { return nil }
