// Command enclave-runsc is gVisor's runtime, carried inside enclave.
package main

import (
	"gvisor.dev/gvisor/runsc/cli/maincli"
)

func main() {
	maincli.Main()
}
