package main

import (
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"
)

// checkpointOptions is where each checkpoint of the log is also written. None by
// default: the place is worth something only if who can write the database can't
// change what is there, and that only an operator can arrange.
type checkpointOptions struct {
	File string // --checkpoint-file, ENCLAVE_CHECKPOINT_FILE
}

func checkpointDefaults(or func(name, def string) string) checkpointOptions {
	return checkpointOptions{File: or("ENCLAVE_CHECKPOINT_FILE", "")}
}

func (o *checkpointOptions) flags(c *cobra.Command) {
	c.Flags().StringVar(&o.File, "checkpoint-file", o.File, "also append each signed checkpoint of the audit log to `FILE`, best on another disk or host; the server ends if it cannot (ENCLAVE_CHECKPOINT_FILE)")
}

func (o *checkpointOptions) validate() error {
	if o.File != "" && !filepath.IsAbs(o.File) {
		return fmt.Errorf("--checkpoint-file %q is not an absolute path", o.File)
	}
	return nil
}
