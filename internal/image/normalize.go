package image

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// mountPointModes are the directories that every unpacked tree has, so that a
// backend can mount over them although the tree is read-only.
var mountPointModes = []struct {
	name string
	mode int64
}{
	{"proc", 0o755}, {"sys", 0o755}, {"dev", 0o755}, {"tmp", 0o1777}, {"work", 0o755},
	{"run", 0o755}, {"run/enclave", 0o755}, {".enclave", 0o755},
}

// The name server is the gateway's own address, the only one that answers; see
// package gateway.
const (
	resolvConf = "nameserver 198.18.0.1\noptions timeout:2 attempts:2\n"
	hosts      = "127.0.0.1 localhost sandbox\n::1 localhost ip6-localhost ip6-loopback\n"
	agentUID   = "1000"
)

// normalize gives the tree what the guest and every backend count on: mount
// points, a resolver, the hosts file, a user for the workload, and a root that
// everyone in the sandbox can enter. What the image has in their place goes.
func (t *tree) normalize() error {
	t.left.entries += 64
	t.left.bytes += 1 << 22
	if err := unix.Fchmod(int(t.root.Fd()), 0o755); err != nil {
		return err
	}
	for _, m := range mountPointModes {
		h := &tar.Header{Typeflag: tar.TypeDir, Name: m.name, Mode: m.mode}
		if err := t.write(h, m.name, nil); err != nil {
			return err
		}
	}
	shell := "/bin/bash"
	if !t.has("bin/bash") {
		shell = "/bin/sh"
	}
	passwd, err := t.withLine("etc/passwd", 2, "agent:x:1000:1000::/work:"+shell)
	if err != nil {
		return err
	}
	group, err := t.withLine("etc/group", 2, "agent:x:1000:")
	if err != nil {
		return err
	}
	for name, content := range map[string]string{
		"etc/resolv.conf": resolvConf, "etc/hosts": hosts, "etc/hostname": "sandbox\n",
		"etc/passwd": passwd, "etc/group": group,
	} {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content))}
		if err := t.write(h, name, strings.NewReader(content)); err != nil {
			return err
		}
	}
	return nil
}

// withLine returns the file's content, with line at its end unless a line has
// the id 1000 in the given field. A file that is missing is empty.
func (t *tree) withLine(name string, field int, line string) (string, error) {
	b, err := t.read(name)
	if err != nil {
		return "", err
	}
	for l := range strings.Lines(string(b)) {
		if f := strings.Split(strings.TrimSpace(l), ":"); len(f) > field && f[field] == agentUID {
			return string(b), nil
		}
	}
	if len(b) > 0 && !bytes.HasSuffix(b, []byte("\n")) {
		b = append(b, '\n')
	}
	return string(b) + line + "\n", nil
}

// open opens a file of the tree, following links as the sandbox would.
func (t *tree) open(name string) (int, error) {
	how := &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_NONBLOCK | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	}
	return retry(func() (int, error) { return unix.Openat2(int(t.root.Fd()), name, how) })
}

func (t *tree) has(name string) bool {
	fd, err := t.open(name)
	if err == nil {
		unix.Close(fd)
	}
	return err == nil
}

// read reads a small regular file of the tree; what is none is empty.
func (t *tree) read(name string) ([]byte, error) {
	const max = 1 << 20
	fd, err := t.open(name)
	if err != nil {
		return nil, nil
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, err
	}
	b, err := io.ReadAll(capped(readerFunc(func(p []byte) (int, error) {
		n, err := retry(func() (int, error) { return unix.Read(fd, p) })
		if n <= 0 && err == nil {
			return 0, io.EOF
		}
		return max0(n), err
	}), max, path.Base(name)))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return b, nil
}

func max0(n int) int { return max(n, 0) }
