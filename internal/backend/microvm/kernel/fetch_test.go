package kernel

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// A host whose apt takes whatever it is given, as images for CI are often made, is
// not one on which anybody may choose the kernel of sandboxes.
func TestAPackageThatNobodySignedIsNotFetched(t *testing.T) {
	got, dir := fetchBy(t, "arch=amd64")
	if !errors.Is(got.err, ErrNoFetch) || !strings.Contains(got.err.Error(), "authenticated") {
		t.Errorf("%q was fetched into %s: %v", got.content, dir, got.err)
	}
}

// The same package from where it is trusted is fetched, so that the refusal is of
// the signature and of nothing else.
func TestAFetchedPackageHasNoName(t *testing.T) {
	got, dir := fetchBy(t, "arch=amd64 trusted=yes")
	if got.err != nil || got.content != somebodys {
		t.Errorf("%q was fetched: %v", got.content, got.err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 || left[0].Name() != ".lock" {
		t.Errorf("%v is left, error %v", left, err)
	}
}

const somebodys = "a kernel of somebody's"

type fetched struct {
	content string
	err     error
}

// fetchBy fetches a package into the directory that it returns, from a repository
// that nobody has signed and that apt takes with these options.
func fetchBy(t *testing.T, options string) (fetched, string) {
	t.Helper()
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
	const name, deb = "linux-image-6.1.0-9-cloud-amd64", somebodys
	about := func(name, more string) string {
		return fmt.Sprintf("Package: %s\nVersion: 6.1.9-1\nArchitecture: amd64\nMaintainer: x <x@example.com>\nDescription: x\n%s"+
			"Filename: ./kernel.deb\nSize: %d\nSHA256: %x\n\n", name, more, len(deb), sha256.Sum256([]byte(deb)))
	}
	for file, content := range map[string]string{
		"repo/kernel.deb": deb,
		"repo/Packages":   about(name, "") + about(meta, "Depends: "+name+"\n"),
		"sources":         "deb [" + options + "] file:" + at("repo") + " ./\n",
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
	f, err := Fetch(t.Context(), at("kernels"), nil)
	if err != nil {
		return fetched{err: err}, at("kernels")
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	return fetched{string(b), err}, at("kernels")
}

func TestHostWithoutAptSaysWhatToDo(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := Fetch(t.Context(), t.TempDir(), nil)
	if !errors.Is(err, ErrNoFetch) || !strings.Contains(err.Error(), "enclave kernel import FILE.deb") {
		t.Error(err)
	}
}

// What interrupts the program at a terminal goes to its group of processes: apt in
// it would end first, and be taken for one without a network.
func TestAptIsInterruptedByUsAlone(t *testing.T) {
	bin := t.TempDir()
	seen := filepath.Join(bin, "seen")
	for name, script := range map[string]string{
		"apt-cache": "#!/bin/sh\necho 'Depends: linux-image-6.1.0-9-cloud-amd64'\n",
		"apt-get":   "#!/bin/sh\n/usr/bin/cut -d' ' -f5 /proc/$$/stat >" + seen + "\nexit 1\n",
	} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", bin)
	if _, err := Fetch(t.Context(), t.TempDir(), nil); !errors.Is(err, ErrNoFetch) {
		t.Fatal(err)
	}
	group, err := os.ReadFile(seen)
	if err != nil || strings.TrimSpace(string(group)) == fmt.Sprint(syscall.Getpgrp()) {
		t.Errorf("it is of the group %s, as we are (%v)", group, err)
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
