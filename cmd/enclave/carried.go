//go:build carried

package main

import (
	"embed"
	"io/fs"
)

// carriedFiles has enclave-guest.zst and enclave-runsc.zst, and SHA256SUMS with
// the digests of what is in them. make puts them there.
//
//go:embed carried
var carriedFiles embed.FS

// carried returns the programs that this executable has inside.
func carried() fs.FS {
	sub, err := fs.Sub(carriedFiles, "carried")
	if err != nil {
		panic(err) // the directive above names the directory
	}
	return sub
}
