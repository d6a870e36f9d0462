package kernel

import (
	"errors"
	"strings"
	"testing"
)

func TestHostWithoutAptSaysWhatToDo(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := Fetch(t.Context(), t.TempDir(), nil)
	if !errors.Is(err, ErrNoFetch) || !strings.Contains(err.Error(), "enclave kernel import FILE.deb") {
		t.Error(err)
	}
}

func TestCurrentKernelIsWhatTheMetaPackageDependsOn(t *testing.T) {
	name, err := dependency([]byte("Package: linux-image-cloud-amd64\nDepends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)\n"))
	if err != nil || name != "linux-image-6.1.0-56-cloud-amd64" {
		t.Errorf("%q, %v", name, err)
	}
	for _, about := range []string{"", "Depends: bash\n", "Depends: linux-image-cloud-amd64\n", "Depends: linux-image-$(reboot)\n"} {
		if name, err := dependency([]byte(about)); !errors.Is(err, ErrNoFetch) {
			t.Errorf("%q gives %q, %v", about, name, err)
		}
	}
}
