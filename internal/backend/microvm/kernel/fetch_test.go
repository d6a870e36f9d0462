package kernel

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// A host whose apt takes whatever it is given, as images for CI are often made, is
// not one on which anybody may choose the kernel of sandboxes.
func TestAPackageThatNobodySignedIsNotFetched(t *testing.T) {
	if _, err := exec.LookPath("apt-get"); err != nil {
		t.Skip("there is no apt-get here")
	}
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, d := range []string{"repo", "state/lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(at(d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	const name, deb = "linux-image-6.1.0-9-cloud-amd64", "a kernel of somebody's"
	about := func(name, more string) string {
		return fmt.Sprintf("Package: %s\nVersion: 6.1.9-1\nArchitecture: amd64\nMaintainer: x <x@example.com>\nDescription: x\n%s"+
			"Filename: ./kernel.deb\nSize: %d\nSHA256: %x\n\n", name, more, len(deb), sha256.Sum256([]byte(deb)))
	}
	for file, content := range map[string]string{
		"repo/kernel.deb": deb,
		"repo/Packages":   about(name, "") + about(meta, "Depends: "+name+"\n"),
		"sources":         "deb [arch=amd64] file:" + at("repo") + " ./\n",
		"conf": fmt.Sprintf("Dir::Etc::sourcelist %q; Dir::Etc::sourceparts \"/dev/null\"; Dir::State %q; Dir::State::status \"/dev/null\"; Dir::Cache %q;\n"+
			"APT::Architecture \"amd64\"; APT::Sandbox::User \"root\"; Acquire::AllowInsecureRepositories \"true\"; APT::Get::AllowUnauthenticated \"true\";\n",
			at("sources"), at("state"), at("cache")),
	} {
		if err := os.WriteFile(at(file), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("APT_CONFIG", at("conf"))
	if out, err := exec.CommandContext(t.Context(), "apt-get", "update").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	got, err := Fetch(t.Context(), at("kernels"), nil)
	if !errors.Is(err, ErrNoFetch) || !strings.Contains(err.Error(), "authenticated") {
		t.Errorf("%q was fetched: %v", got, err)
	}
}

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
