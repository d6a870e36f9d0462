package corpus

import (
	"archive/zip"
	"bytes"
	"compress/flate"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave"
)

// exhaustionAttacks are group E: what a workload takes until nobody has any. Each
// has its neighbours, who must not notice. A control has the same attack in a
// control group whose limits are wide, and only so wide that this host lives.
var exhaustionAttacks = []attack{
	inSmoke(multiplying("E01", `
import os
print('$ARMED', flush=True)
while True: os.fork()
`)),
	multiplying("E02", `
import threading, time
print('$ARMED', flush=True)
while True: threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
`),
	filling("E04", `
echo '$ARMED'
dd if=/dev/zero of=/dev/shm/x bs=1M count=4096
dd if=/dev/zero of=/tmp/x bs=1M count=4096
sleep 60
`),
	filling("E05", `
echo '$ARMED'
dd if=/dev/zero of=/work/x bs=1M count=100000
dd if=/dev/zero of=/tmp/x bs=1M count=100000
sleep 60
`),
	{
		id: "E07",
		code: `
import socket
print('$ARMED', flush=True)
l = []
try:
    while True: l.append(socket.socket())
except OSError as e: print('SOCKETS', len(l), e.errno)
`,
		request: limited(enclave.Limits{MemoryMB: 1024}),
		ends:    &ends{},
		bounds:  &bounds{opened: mostFiles(), fds: 64},
		during:  neighbours,
		breaks:  hostDoS,
		control: onBare(bare{limit: 20 * time.Second}).changed(func(a *attack) {
			a.code = "import os\n[os.fork() for _ in range(3)]\n" + a.code // a limit of each process is none of all
		}),
	},
	{
		id:    "E08",
		smoke: true,
		code: `
import os
print('$ARMED', flush=True)
while True: os.write(1, b'A' * 65536)
`,
		request: limited(enclave.Limits{OutputBytes: 50_000}),
		ends:    &ends{kill: "output_exceeded", resource: "outputBytes"},
		bounds:  &bounds{rss: 64 << 20},
		judge:   outputIsCut,
		breaks:  hostDoS,
		control: allowing("a limit of 200,000 bytes", limited(enclave.Limits{OutputBytes: 200_000})),
	},
	{
		id:       "E10",
		language: "bash",
		code:     "echo '$ARMED'\nsleep 1000000",
		request:  limited(enclave.Limits{WallSeconds: 3}),
		ends:     &ends{kill: "wall_clock_exceeded", resource: "wallSeconds"},
		bounds:   &bounds{},
		judge:    endless,
		breaks:   hostDoS,
		control:  onBare(bare{limit: 5 * time.Second}),
	},
	{
		id: "E11",
		code: `
import os
print('$ARMED', flush=True)
[os.fork() for _ in range(4)]
while True: pass
`,
		request: limited(enclave.Limits{CPUSeconds: 2}),
		ends:    &ends{kill: "cpu_exceeded", resource: "cpuSeconds"},
		bounds:  &bounds{},
		during:  neighbours,
		judge:   endless,
		breaks:  hostDoS,
		control: onBare(bare{limit: 3 * time.Second}),
	},
	multiplying("E13", `
import os
print('$ARMED', flush=True)
while True:
    if os.fork() == 0: os._exit(0)
`),
	{
		id:      "E14",
		instead: "nothing collects files from a sandbox; the archive comes out as output, and is scanned and kept as it is",
		code: `
import sys, zipfile
z = zipfile.ZipFile('/work/out.zip', 'w', zipfile.ZIP_DEFLATED)
for i in range(2): z.writestr('%d' % i, b'0' * (64 << 20))
z.close()
b = open('/work/out.zip', 'rb').read()
print('$ARMED', flush=True)
sys.stdout.buffer.write(b); sys.stdout.flush()
enclave.result(len(b))
`,
		ends:    &ends{},
		bounds:  &bounds{rss: 64 << 20},
		judge:   archiveIsOpaque,
		breaks:  hostDoS,
		control: control{what: "a collector that inflates", run: inflate},
	},
	{
		id:      "E16",
		instead: "there is no descriptor of the result; its socket is sent the same bytes, and valid JSON that parsers read differently",
		code: resultFrame + `
print('$ARMED', flush=True)
for b in (b'[' * 200000 + b']' * 200000, b'[' * 300 + b']' * 300, b'NaN', b'[Infinity]', b'9' * (10 << 20), b'"\xed\xa0\x80"', b'{"a":1}{', b'\xef\xbb\xbf1', b''):
    print(frame(b))
print(frame(b'` + oddJSON + `'.replace(b'$', b'\\')))
`,
		ends:    &ends{},
		bounds:  &bounds{rss: 64 << 20, fds: 64},
		judge:   collected("", 10, 0),
		breaks:  spoof,
		control: instead("enclave.result([])"),
	},
	{
		// The guest, as the first process of its sandbox, is stopped, and then the
		// workload stops itself: nothing inside can keep the time.
		id: "E17",
		code: `
import os, signal
print('$ARMED', flush=True)
try: os.kill(1, signal.SIGSTOP)
except OSError as e: print(e)
child = os.fork()
if child == 0: os.kill(os.getpid(), signal.SIGSTOP)
os.waitpid(child, 0)
`,
		request: limited(enclave.Limits{WallSeconds: 4}),
		ends:    &ends{kill: "wall_clock_exceeded", resource: "wallSeconds"},
		bounds:  &bounds{},
		judge:   endless,
		breaks:  hostDoS,
		control: onBare(bare{limit: 5 * time.Second}),
	},
	{
		id:       "E19",
		language: "bash",
		code: `
ulimit -c unlimited
cd /work
echo '$ARMED'
python3 -c 'import ctypes; ctypes.string_at(0)' $NONCE
c=$?
ls -la /work
exit $c
`,
		ends:    &ends{outcome: enclave.Failed},
		judge:   noCore,
		breaks:  hostDoS,
		control: onBare(bare{}).changed(func(a *attack) { a.code = strings.ReplaceAll(a.code, "cd /work", "cd /var/tmp") }),
	},
	{
		id:      "E20",
		smoke:   true,
		drive:   createStorm,
		breaks:  hostDoS,
		control: control{what: "a control plane without quotas", run: stormWithoutQuotas},
	},
}

// multiplying is an attack whose code makes tasks without end.
func multiplying(id, code string) attack {
	return attack{
		id:      id,
		code:    code,
		request: limited(enclave.Limits{PidsLimit: 64}),
		ends:    &ends{kill: "pids_exceeded", resource: "pidsLimit"},
		bounds:  &bounds{tasks: mostTasks},
		during:  neighbours,
		breaks:  hostDoS,
		control: onBare(bare{pids: 2 * mostTasks, limit: 4 * time.Second}),
	}
}

// inSmoke has an attack run in "make test".
func inSmoke(a attack) attack {
	a.smoke = true
	return a
}

// filling is an attack whose code, in bash, writes more than its disk takes.
func filling(id, code string) attack {
	return attack{
		id:       id,
		language: "bash",
		code:     code,
		request:  limited(enclave.Limits{PidsLimit: 64, MemoryMB: 128, DiskMB: 32}),
		ends:     &ends{kill: "disk_exceeded", resource: "diskMb"},
		bounds:   &bounds{memory: mostMemory, disk: 48 << 20},
		during:   neighbours,
		breaks:   hostDoS,
		control:  onBare(bare{memory: 2 * mostMemory, limit: 4 * time.Second}),
	}
}

const (
	// mostTasks is what a sandbox of 64 processes has on this host at most: gVisor
	// has threads of its own for them, docker the guest's.
	mostTasks = 384
	// mostMemory is what one of 128 MB and 32 MB of files has at most: those, shared
	// memory of 64 MB, the guest or gVisor's kernel, and what the kernel keeps.
	mostMemory = 320 << 20
)

// mostFiles is how many a sandbox of one process opens on this host at most, beside
// what others open meanwhile.
func mostFiles() int64 {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		panic(err)
	}
	return int64(min(l.Max, 65536)) + 8192
}

const oddJSON = `{"a":1,"a":2,"n":1e400,"s":"$ud800"}`

func limited(l enclave.Limits) func(*run, *enclave.SessionRequest) {
	return func(_ *run, req *enclave.SessionRequest) { req.Limits = l }
}

// outputIsCut judges E08: the first bytes up to the limit are kept, and no more.
func outputIsCut(r *run) (all []finding) {
	n := len(r.result.StdoutBytes()) + len(r.result.StderrBytes())
	if n > 50_000 {
		all = append(all, found(hostDoS, "%d bytes of output were kept under a limit of 50,000", n))
	}
	if n < 50_000 || !r.result.Truncated {
		all = append(all, found(auditBreak, "%d bytes of output were kept, truncated %t", n, r.result.Truncated))
	}
	return all
}

// archiveIsOpaque judges E14: what came is an archive that would be large.
func archiveIsOpaque(r *run) []finding {
	if r.bare {
		return nil
	}
	_, b, _ := bytes.Cut(r.result.StdoutBytes(), []byte("\n"))
	z, err := zip.NewReader(bytes.NewReader(b), int64(len(b)))
	if err != nil || len(z.File) != 2 || z.File[0].UncompressedSize64 != 64<<20 {
		return []finding{found(auditBreak, "of the archive %d bytes came, error %v", len(b), err)}
	}
	r.proof("an archive of %d bytes that holds 128 MiB came as it is", len(b))
	return nil
}

// inflate is the control of E14.
func inflate(_ context.Context, a *attack, w *world) *run {
	r := newControl(a, w, "control: a collector that inflates")
	if r.infra != nil {
		return r
	}
	r.result.Stdout = r.receipt()
	var packed bytes.Buffer
	z, _ := flate.NewWriter(&packed, 1)
	zeros := make([]byte, 1<<20)
	for range 128 {
		_, _ = z.Write(zeros) // to memory
	}
	_ = z.Close()
	n, err := io.Copy(io.Discard, flate.NewReader(&packed))
	if err != nil {
		r.infra = err
	}
	if n > a.bounds.rss {
		r.find(hostDoS, "%d bytes inflated, of at most %d", n, a.bounds.rss)
	}
	return r
}

// noCore judges E19: the program was killed by SIGSEGV, and its memory is in no
// file of this host.
func noCore(r *run) (all []finding) {
	if !r.bare && (r.result.ExitCode == nil || *r.result.ExitCode != 139) {
		all = append(all, found(auditBreak, "its exit status is not 139: %v", r.result.ExitCode))
	}
	for _, c := range r.changed {
		if strings.Contains(c, "core") {
			all = append(all, found(hostDoS, "there is a core file: %s", c))
		}
	}
	if r.bare {
		return all
	}
	for _, dir := range []string{"/", "/work", "/tmp", "/var/tmp", "/var/crash", "/var/lib/systemd/coredump", ".", r.world.dir} {
		cores, err := filepath.Glob(filepath.Join(dir, "core*"))
		if err != nil {
			return append(all, found(infra, "%v", err))
		}
		for _, c := range cores {
			if fi, err := os.Stat(c); err == nil && fi.Mode().IsRegular() && fi.ModTime().After(r.meter.began) {
				all = append(all, found(hostDoS, "this host has %s", c))
			}
		}
	}
	if strings.Contains(r.stdout(), " core") {
		all = append(all, found(hostDoS, "there is a core file in the sandbox"))
	}
	return all
}
