package testenv

import (
	"fmt"
	"os/exec"
)

// Link makes to, which must not exist, a directory with the files of the directory
// from: the same files where one file system has both, else copies.
func Link(from, to string) error {
	if exec.Command("cp", "-al", from, to).Run() == nil {
		return nil
	}
	if out, err := exec.Command("sh", "-c", `rm -rf -- "$2" && exec cp -a -- "$1" "$2"`, "sh", from, to).CombinedOutput(); err != nil {
		return fmt.Errorf("copy %s to %s: %w: %s", from, to, err, out)
	}
	return nil
}
