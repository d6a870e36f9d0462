package image

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// builder is the program that Build runs. It fetches Debian's packages from
// the mirror of this host and checks their signatures.
const builder = "mmdebstrap"

const suite = "bookworm"

// ErrNoBuilder says that the program that builds an image is not there.
var ErrNoBuilder = errors.New("to build the default image, " + builder + " is needed: apt-get install -y " + builder + alternatives)

const alternatives = `; without it, use "enclave image pull REFERENCE" or "enclave image import FILE"`

// packages are what agents' code expects. The rest comes with them.
var packages = []string{"python3", "python3-requests", "nodejs", "bash", "git", "curl", "ca-certificates"}

// unwanted never reaches a sandbox: nobody reads it there.
var unwanted = []string{
	"/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/doc/*", "/usr/share/lintian/*",
	"/usr/share/nodejs/@types/*", "/usr/share/bash-completion/*", "/usr/share/zoneinfo/right/*",
}

// hook runs in the finished tree ($1). Python's byte code is compiled so that
// it is valid whatever the time of the source: the default would compare it with
// times that the archive has changed, and compile every module again in every
// sandbox, where nothing can be kept.
const hook = `set -e
chroot "$1" python3 -m compileall -q -f --invalidation-mode unchecked-hash /usr/lib/python3 /usr/lib/python3.11
rm -rf "$1"/var/cache/* "$1"/var/log/* "$1"/var/lib/apt/lists/* "$1"/var/lib/dpkg/*-old "$1"/etc/passwd- "$1"/etc/group- "$1"/etc/shadow- "$1"/etc/gshadow- "$1"/etc/resolv.conf "$1"/etc/hostname
: > "$1"/etc/machine-id
`

// Build makes the default image on this host from Debian packages, which takes
// root and the network, names it Default and returns its digest. If another
// process is building, it waits and returns what that one built.
func (s *Store) Build(ctx context.Context, progress func(Step)) (string, error) {
	if _, err := exec.LookPath(builder); err != nil {
		return "", ErrNoBuilder
	}
	if os.Geteuid() != 0 {
		return "", fmt.Errorf("building the default image takes root%s", alternatives)
	}
	before, _ := s.Resolve(Default)
	unlock, waited, err := s.lock(ctx, progress)
	if err != nil {
		return "", err
	}
	defer unlock()
	if after, err := s.Resolve(Default); waited && err == nil && after != before {
		tell(progress, 100, "another process built it")
		return after, nil
	}
	tmp, err := os.MkdirTemp(filepath.Join(s.dir, "tmp"), "build-")
	if err != nil {
		return "", err
	}
	defer removeTree(tmp)
	digest, err := s.bootstrap(ctx, tmp, progress)
	if err != nil {
		return "", fmt.Errorf("build the default image: %w", err)
	}
	return digest, nil
}

func (s *Store) bootstrap(ctx context.Context, tmp string, progress func(Step)) (string, error) {
	cmd := exec.CommandContext(ctx, builder, builderArgs(hostSources("/etc"))...)
	cmd.Env = []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root", "LC_ALL=C.UTF-8", "TMPDIR=" + tmp,
		fmt.Sprintf("SOURCE_DATE_EPOCH=%d", epoch.Unix()),
	}
	for _, v := range []string{"http_proxy", "https_proxy", "no_proxy"} {
		if p, ok := os.LookupEnv(v); ok {
			cmd.Env = append(cmd.Env, v+"="+p)
		}
	}
	// Its mounts are in a namespace of their own, and so end with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	log, err := cmd.StderrPipe()
	if err != nil {
		return "", err
	}
	tell(progress, 0, "asking %s for Debian %s", builder, suite)
	if err := cmd.Start(); err != nil {
		return "", err
	}
	lines := make(chan []string, 1)
	go func() { lines <- follow(log, progress) }()
	wait := sync.OnceValue(func() error {
		last := <-lines
		if err := cmd.Wait(); err != nil {
			return errors.Join(ctx.Err(), explain(err, last))
		}
		return nil
	})
	defer func() {
		if ctx.Err() != nil || cmd.ProcessState == nil {
			syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) // nobody reads its output any more
			out.Close()
		}
		wait()
	}()
	// An archive that looks complete is one only if its maker says so: the
	// exit status comes before the end of the file does.
	return s.putRootfs(ctx, Default, readerFunc(func(p []byte) (int, error) {
		n, err := out.Read(p)
		if err == io.EOF {
			if werr := wait(); werr != nil {
				err = werr
			}
		}
		return n, err
	}), progress)
}

func builderArgs(sources []string) []string {
	args := []string{
		"--mode=root", "--variant=essential", "--format=tar",
		"--include=" + strings.Join(packages, ","),
		"--customize-hook=" + hook,
	}
	for _, u := range unwanted {
		args = append(args, "--dpkgopt=path-exclude="+u)
	}
	args = append(args, "--dpkgopt=path-include=/usr/share/doc/*/copyright", suite, "-")
	return append(args, sources...)
}

// hostSources returns the files that say where this host gets its packages, if
// it is of the suite; else none, for the builder's own default.
func hostSources(etc string) []string {
	release, err := os.ReadFile(filepath.Join(etc, "os-release"))
	if err != nil || !strings.Contains("\n"+string(release), "\nVERSION_CODENAME="+suite+"\n") ||
		!strings.Contains("\n"+string(release), "\nID=debian\n") {
		return nil
	}
	var files []string
	for _, name := range []string{"apt/sources.list", "apt/sources.list.d/debian.sources"} {
		file := filepath.Join(etc, name)
		b, err := os.ReadFile(file)
		if err == nil && (strings.HasPrefix(string(b), "deb") || strings.Contains(string(b), "\ndeb ") || strings.Contains(string(b), "URIs:")) {
			files = append(files, file)
		}
	}
	return files
}

// stages are what the builder says as it goes, and how far it is then.
var stages = []struct {
	says    string
	percent int
}{
	{"running apt-get update", 3}, {"downloading packages", 8}, {"extracting archives", 25},
	{"installing essential packages", 40}, {"installing remaining packages", 50},
	{"running --customize-hook", 75}, {"cleaning package lists", 82}, {"creating tarball", 84},
}

// follow turns the builder's log into steps, until it ends, and returns its
// last lines of error.
func follow(log io.Reader, progress func(Step)) (last []string) {
	sc := bufio.NewScanner(log)
	for sc.Scan() {
		line := strings.TrimSpace(sc.Text())
		if text, ok := strings.CutPrefix(line, "I: "); ok {
			for _, st := range stages {
				if strings.HasPrefix(text, st.says) {
					tell(progress, st.percent, "%s", strings.TrimRight(strings.SplitN(text, ":", 2)[0], "."))
				}
			}
			continue
		}
		if strings.HasPrefix(line, "E:") || strings.HasPrefix(line, "W:") || strings.HasPrefix(line, "Err:") {
			if len(last) == 8 {
				last = last[1:]
			}
			last = append(last, line)
		}
	}
	io.Copy(io.Discard, log) // a line too long for the scanner must not block the builder
	return last
}

// A buildError is the builder's failure, not the fault of an image.
type buildError struct {
	err  error
	last []string
}

func (e *buildError) Unwrap() error { return e.err }

func (e *buildError) Error() string {
	text := strings.Join(e.last, "; ")
	for _, sign := range []string{"resolv", "Could not connect", "Unable to connect", "Failed to fetch", "timed out", "Network is unreachable"} {
		if strings.Contains(text, sign) {
			return fmt.Sprintf("the package mirror of this host can't be reached (%s)%s", text, alternatives)
		}
	}
	if text == "" {
		return fmt.Sprintf("%s: %v", builder, e.err)
	}
	return fmt.Sprintf("%s: %v: %s", builder, e.err, text)
}

func explain(err error, last []string) error { return &buildError{err, last} }
