package doctor

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/mod/module"

	"github.com/enclave-run/enclave/internal/image"
	"github.com/enclave-run/enclave/internal/safepath"
)

// lookAtPrograms unpacks programs into room, unless there is none for the reason err.
func (h *host) lookAtPrograms(ctx context.Context, c Config, room Room, err error) {
	if !h.kind.Executes {
		return
	}
	h.image = learn(lookAtImage(ctx, c, h.dir.value.exists))
	var runsc, guest string
	if err == nil {
		runsc, guest, err = c.Programs(room.Programs)
	}
	if err != nil {
		h.programs = learn([]program(nil), err)
		h.gvisor = learn(time.Time{}, err)
		return
	}
	h.programs = learn(digests(runsc, guest))
	h.gvisor = learn(gvisorDay(runsc))
}

func digests(paths ...string) ([]program, error) {
	var all []program
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		sum := sha256.New()
		_, err = io.Copy(sum, f)
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, err
		}
		all = append(all, program{filepath.Base(path), path, hex.EncodeToString(sum.Sum(nil))})
	}
	return all, nil
}

// gvisorDay reads of which day the gVisor in a program is: its module has no other
// version than the time of a commit.
func gvisorDay(path string) (time.Time, error) {
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return time.Time{}, err
	}
	for _, d := range info.Deps {
		if d.Path == "gvisor.dev/gvisor" {
			if d.Replace != nil {
				return time.Time{}, fmt.Errorf("it was built with %s in place of gVisor", d.Replace.Path)
			}
			return module.PseudoVersionTime(d.Version)
		}
	}
	return time.Time{}, fmt.Errorf("%s has no gVisor in it", path)
}

var versionText = regexp.MustCompile(`(?:release-|[vV]|\s|^)(\d+(?:\.\d+)+[^\s,]*|20\d{6}[.\d]*)`)

// say runs a program for what it prints. A program that fails says nothing, and neither
// does one that others than root could exchange: it could do anything, and is not run.
func say(ctx context.Context, path string, args ...string) string {
	real, err := safepath.File(path)
	if err != nil {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, real, args...)
	cmd.Args[0] = path // some programs ask what they are called
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		return ""
	}
	return string(out[:min(len(out), 4096)])
}

func lookAtImage(ctx context.Context, c Config, exists bool) (picture, error) {
	p := picture{now: c.Now(), missing: true}
	if !exists {
		return p, nil
	}
	images, err := c.Images()
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil
	}
	if err != nil {
		return p, err
	}
	p.digest, err = images.Resolve(image.Default)
	if errors.Is(err, image.ErrNotFound) {
		return p, nil
	}
	if err != nil {
		return p, err
	}
	p.missing = false
	list, err := images.List()
	if err != nil {
		return p, err
	}
	for _, i := range list {
		if i.Digest == p.digest {
			p.size = i.Size
		}
	}
	// When it was made it may not say: an image that is built the same each time
	// has a date of its own.
	info, err := os.Stat(filepath.Join(c.State, "images", "blobs", "sha256", strings.TrimPrefix(p.digest, "sha256:")))
	if err != nil {
		return p, err
	}
	p.since = info.ModTime()
	return p, images.Verify(ctx, p.digest)
}

func (h *host) lookAtServices(ctx context.Context, c Config) {
	if h.euid == 0 {
		h.gateway = learn(struct{}{}, c.Gateway(ctx))
	}
	h.neighbor = learn(userName(c.GatewayUser))
	h.open = learn(openAddresses(c))
	h.auditKey = learn(lookAtKey(filepath.Join(c.State, "db", "audit.key")))
	s := h.server.value
	if !s.held || s.alive != nil {
		h.audit = known(record{})
		return
	}
	body, err := get(ctx, c, "/v1/audit/checkpoint")
	if err != nil && left(ctx, c, s.pid) {
		h.audit = known(record{})
		return
	}
	if err == nil && !bytes.Contains(body, []byte("—")) && !bytes.Contains(body, []byte(`\u2014`)) {
		// A signed note has its signatures on lines that begin with an em dash
		// (golang.org/x/mod/sumdb/note).
		err = fmt.Errorf("the checkpoint has no signature: %.100q", body)
	}
	r := record{held: true}
	args, aerr := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", s.pid))
	env, eerr := os.ReadFile(fmt.Sprintf("/proc/%d/environ", s.pid))
	if r.told = aerr == nil && eerr == nil; r.told {
		r.second = option(string(args), string(env), "checkpoint-file", "ENCLAVE_CHECKPOINT_FILE")
	}
	h.audit = learn(r, err)
}

// option is the value that a process was started with, by its arguments or else its
// environment, as proc_pid_cmdline(5) and proc_pid_environ(5) have them.
func option(args, env, flag, variable string) string {
	value := ""
	for e := range strings.SplitSeq(env, "\x00") {
		if v, ok := strings.CutPrefix(e, variable+"="); ok {
			value = v
		}
	}
	list := strings.Split(args, "\x00")
	for i, a := range list {
		if v, ok := strings.CutPrefix(a, "--"+flag+"="); ok {
			value = v
		} else if a == "--"+flag && i+1 < len(list) {
			value = list[i+1]
		}
	}
	return value
}

// userName is the name of a user in the host's list, or empty.
func userName(id int) (string, error) {
	u, err := user.LookupId(strconv.Itoa(id))
	if errors.As(err, new(user.UnknownUserIdError)) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	return u.Username, nil
}

func openAddresses(c Config) ([]string, error) {
	table, err := c.Table()
	if err != nil {
		return nil, err
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var open []string
	for _, a := range addrs {
		n, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		if ip, ok := netip.AddrFromSlice(n.IP); ok && table.Public(ip.Unmap()) {
			open = append(open, ip.Unmap().String())
		}
	}
	return open, nil
}

func lookAtKey(path string) (keyFile, error) {
	k := keyFile{path: path}
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return k, nil
	}
	if err != nil {
		return k, err
	}
	k.exists, k.mode = true, info.Mode()
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		k.uid = int(st.Uid)
	}
	return k, nil
}
