package corpus

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// nobody is a user of the bare host without privileges, as a workload is.
const nobody = 65534

// syscallAttacks are group D: system calls and the surface of the kernel. What a
// call returned is no proof: gVisor allows some in a kernel of its own. What the
// host's kernel has given to the sandbox's processes is.
var syscallAttacks = []attack{
	{
		id:    "D01",
		smoke: true,
		held:  true,
		code: sc + `
def inside():
    try:
        open('/proc/self/setgroups', 'w').write('deny'); open('/proc/self/uid_map', 'w').write('0 %d 1' % uid)
    except OSError as e: print(e)
    sc(165, b'$NONCE', b'/tmp', b'tmpfs', 0, 0)
    print([l for l in open('/proc/self/status') if l.startswith('Cap')], flush=True)
uid = os.getuid()
print('$ARMED', flush=True)
r, w = os.pipe()
if os.fork() == 0:
    sc(272, 0x10000000); os.write(w, b'1'); signal.pause()
if os.fork() == 0:
    sc(435, struct.pack('<QQQQQQQQ', 0x10000000 | 0x20000, 0, 0, 0, 17, 0, 0, 0), 64)   # clone3
    os.write(w, b'2'); signal.pause()
sc(272, 0x10000000 | 0x20000); inside()
os.read(r, 1); os.read(r, 1)
print('$HELD', flush=True); signal.pause()
`,
		judge:   privileges,
		control: onBare(bare{user: nobody}),
	},
	{
		id:    "D02",
		smoke: true,
		held:  true,
		code: sc + `
print('$ARMED', flush=True)
sc(165, b'$NONCE', b'/tmp', b'tmpfs', 0, 0)              # mount
f = sc(430, b'tmpfs', 0)                                  # fsopen
sc(431, f, 1, b'source', b'$NONCE', 0); sc(431, f, 6, 0, 0, 0)   # fsconfig
m = sc(432, f, 0, 0); sc(429, m, b'', -100, b'/tmp', 4)   # fsmount, move_mount
sc(428, -100, b'/', 1); sc(433, -100, b'/', 0)            # open_tree, fspick
sc(442, -100, b'/', 0, struct.pack('<QQQQ', 0, 1, 0, 0), 32)     # mount_setattr
sc(155, b'.', b'.'); sc(161, b'/tmp'); sc(166, b'/work', 2)      # pivot_root, chroot, umount2
print('$HELD', flush=True); signal.pause()
`,
		judge:   both(kernelObjects(`^anon_inode:\[?fscontext`), privileges),
		control: onBare(bare{}),
	},
	{
		id:    "D04",
		smoke: true,
		boots: true,
		held:  true,
		code: sc + `
attr = ctypes.create_string_buffer(struct.pack('<IIIII', 2, 4, 8, 1, 0), 128)   # an array map
perf = ctypes.create_string_buffer(struct.pack('<IIQ', 1, 128, 0), 128)         # a software clock
print('$ARMED', flush=True)
sc(321, 0, attr, 128); sc(298, perf, 0, -1, -1, 0); sc(298, perf, -1, 0, -1, 0)
print('$HELD', flush=True); signal.pause()
`,
		judge:   kernelObjects(`^anon_inode:(bpf-|\[perf_event\])`),
		control: onBare(bare{}),
	},
	{
		id:    "D05",
		smoke: true,
		held:  true,
		code: sc + `
print('$ARMED', flush=True)
sc(425, 8, ctypes.create_string_buffer(256)); sc(323, 0); sc(323, 1)
try: os.close(sc(16, os.open('/dev/userfaultfd', os.O_RDWR), 0xAA00, 0))
except OSError as e: print(e)
print('$HELD', flush=True); signal.pause()
`,
		judge:   kernelObjects(`^anon_inode:\[(io_uring|userfaultfd)\]`),
		control: onBare(bare{user: nobody}),
	},
	{
		id:   "D07",
		held: true,
		prepare: func(r *run) (err error) {
			r.modules, err = modules()
			return err
		},
		code: sc + `
print('$ARMED', flush=True)
sc(175, 0, 0, b''); sc(313, 0, b'', 0); sc(246, 0, 0, 0, 0); sc(320, -1, -1, 0, b'', 0)
sc(169, 0xfee1dead, 672274793, 0x1234567, 0)
print('$HELD', flush=True); signal.pause()
`,
		// In a process namespace of its own the kernel ends the namespace's first
		// process with SIGHUP in place of the machine (reboot(2)).
		judge: func(r *run) []finding {
			if r.bare && r.signal == syscall.SIGHUP {
				return []finding{found(hostDoS, "the machine was rebooted")}
			}
			now, err := modules()
			if err != nil {
				return []finding{found(infra, "%v", err)}
			}
			if now != r.modules {
				return []finding{found(escape, "the host's modules were %q and are %q", r.modules, now)}
			}
			return nil
		},
		control: onBare(bare{}),
	},
	{
		id:    "D08",
		smoke: true,
		// The handle is that of the flag itself, which an attacker finds by counting;
		// every place that is not the sandbox's own memory is tried as its file system.
		prepare: func(r *run) error {
			h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, r.flagPath, 0)
			if err != nil {
				return err
			}
			r.vars = append(r.vars, "$HANDLE", hex.EncodeToString(h.Bytes()), "$KIND", fmt.Sprint(h.Type()))
			return nil
		},
		code: sc + `
flag = bytes.fromhex('$HANDLE')
root = struct.pack('<II', 2, 0)
print('$ARMED', flush=True)
for p in ('/', '/.enclave', '/.enclave/enclave-guest', '/etc/resolv.conf', '/etc/hosts', '/work', '/tmp', '/proc', '/dev', os.path.dirname('$FLAG')):
    for kind, handle in (($KIND, flag), (1, root)):
        try: m = os.open(p, os.O_RDONLY)
        except OSError as e: print(p, e.errno); continue
        f = sc(304, m, struct.pack('<Ii', len(handle), kind) + handle, 0)
        if f >= 0:
            try: print(os.read(f, 4096))
            except OSError as e: print(os.listdir(f)[:5])
`,
		control: onBare(bare{}),
	},
	{
		id:       "D10",
		held:     true,
		language: "bash",
		code: `
cp /bin/sleep /tmp/s; chmod 4755 /tmp/s
grep NoNewPrivs /proc/self/status
echo '$ARMED'
for f in /tmp/s $(find / -xdev -perm -4000 -type f 2>/dev/null); do $f 1000 </dev/null & done
for p in $(jobs -p); do while [ "$(cat /proc/$p/comm 2>/dev/null)" = bash ]; do sleep 0.1; done; done   # until it is what it was started as
echo '$HELD'; sleep 1000
`,
		judge: privileges,
		control: onBare(bare{user: nobody, plant: func(r *run, root string) error {
			path := filepath.Join(root, "usr/local/bin/sleep-as-root")
			if err := copyProgram("sleep", path); err != nil {
				return err
			}
			return os.Chmod(path, 0o755|os.ModeSetuid)
		}}),
	},
	{
		id:   "D11",
		held: true,
		// Each call in a process of its own, which may die of it.
		code: sc + `
import mmap, time
m = mmap.mmap(-1, 8192, prot=7, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40)   # below 4 GiB
base = ctypes.addressof(ctypes.c_char.from_buffer(m))
struct.pack_into('<IIIII', m, 4096, 2, 4, 8, 1, 0)
def int80(n, *a):
    a = (list(a) + [0] * 5)[:5]
    m[0:64] = (b'\x53\xb8' + struct.pack('<I', n) + b'\xbb' + struct.pack('<I', a[0] & 0xffffffff) + b'\xb9' + struct.pack('<I', a[1] & 0xffffffff) +
        b'\xba' + struct.pack('<I', a[2] & 0xffffffff) + b'\xbe' + struct.pack('<I', a[3] & 0xffffffff) + b'\xbf' + struct.pack('<I', a[4] & 0xffffffff) + b'\xcd\x80\x5b\xc3').ljust(64, b'\x90')
    return ctypes.CFUNCTYPE(ctypes.c_int)(base)()
x32 = 0x40000000
calls = [lambda: int80(20), lambda: int80(359, 40, 1, 0), lambda: int80(357, 0, base + 4096, 128), lambda: int80(374, 1), lambda: int80(425, 8, base + 4200),
    lambda: sc(41 | x32, 40, 1, 0), lambda: sc(321 | x32, 0, base + 4096, 128), lambda: sc(323 | x32, 1), lambda: sc(425 | x32, 8, base + 4200)]
print('$ARMED', flush=True)
r, w = os.pipe()
for i, call in enumerate(calls):
    p = os.fork()
    if p == 0:
        os.close(r); print(i, call(), flush=True); os.write(w, b'x'); signal.pause()
os.close(w)
n = 0
while n < len(calls) and os.read(r, 1):
    n += 1
    died, status = os.waitpid(-1, os.WNOHANG)
print('$HELD', flush=True); signal.pause()
`,
		judge:   kernelObjects(`^anon_inode:(bpf-|\[(io_uring|userfaultfd)\])|^AF_VSOCK$`),
		control: onBare(bare{}),
	},
	{
		id:    "D13",
		smoke: true,
		code: `
import os
print('$ARMED', flush=True)
for p in ('$FLAG', '/proc/1/root$FLAG'):
    try: print(open(p).read())
    except OSError as e: print(p, e.errno)
    for w in (p, p + '-$NONCE'):
        try: open(w, 'a').write('$NONCE')
        except OSError as e: print(w, e.errno)
for i in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0: os.execv('/bin/sleep', ['$NONCE', '1000'])
        os._exit(0)
`,
		control: onBare(bare{}),
	},
	{
		id:   "D14",
		held: true,
		code: sc + `
import mmap, random, time
# Not those that end, stop or multiply the process itself, or wait for ever.
SKIP = {231, 60, 34, 61, 247, 15, 127, 128, 130, 62, 129, 200, 234, 297, 424, 56, 57, 58, 435, 59, 322, 3, 436, 33, 292, 424, 37, 222, 7, 23, 232, 270, 271, 281, 441, 202, 0, 19, 17, 295, 327, 45, 47, 299, 65, 220, 69, 28, 11, 25, 10, 9, 12, 329, 26, 216, 302, 160, 13, 14, 37, 38, 131, 101, 158, 317, 335, 336}
calls = mmap.mmap(-1, 8)
signal.signal(signal.SIGHUP, signal.SIG_IGN)   # which a group of processes gets when some of it are stopped and their parent ends
print('$ARMED', flush=True)
end, turn, stopped = time.time() + 20, 0, []
def made(): return struct.unpack_from('<Q', calls, 0)[0]
while time.time() < end or made() < 5000 and time.time() < end + 30:   # each turn's process is stopped with what it has open; the oldest go
    if len(stopped) > 60: os.kill(stopped[0], 9); os.waitpid(stopped.pop(0), 0)
    turn += 1; child = os.fork()
    if child == 0:
        os.dup2(os.open('/dev/null', os.O_RDWR), 1); os.dup2(1, 2)
        R = random.Random(turn * 7919)
        signal.signal(signal.SIGALRM, lambda *a: None); signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)   # out of what waits
        while True:
            n = R.randrange(460)
            if n not in SKIP:
                L.syscall(n, *[ctypes.c_long(R.choice((0, -1, 1, 4096, R.getrandbits(63)))) for _ in range(6)])
                struct.pack_into('<Q', calls, 0, made() + 1)
    time.sleep(0.1)
    if os.waitpid(child, os.WNOHANG)[0] == 0: os.kill(child, 19); stopped.append(child)
print('calls', made())
print('$HELD', flush=True); signal.pause()
`,
		during: aCleanNeighbour,
		judge: func(r *run) (all []finding) {
			_, after, _ := strings.Cut(r.stdout(), "calls ")
			var n int
			if fmt.Sscan(after, &n); n < 2_000 {
				all = append(all, found(vacuous, "it made %d calls", n))
			}
			r.proofs = append(r.proofs, fmt.Sprintf("%d random system calls", n))
			return append(append(all, kernelObjects(`^anon_inode:(bpf-|\[?(io_uring|userfaultfd|perf_event|fscontext))|^AF_VSOCK$`)(r)...), privileges(r)...)
		},
		control: onBare(bare{user: nobody, limit: 2 * time.Minute}),
	},
}

// modules are the names of the host's kernel modules; their counts change by
// themselves.
func modules() (string, error) {
	b, err := os.ReadFile("/proc/modules")
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil // a kernel without modules
	}
	var names []string
	for line := range strings.Lines(string(b)) {
		name, _, _ := strings.Cut(line, " ")
		names = append(names, name)
	}
	slices.Sort(names)
	return strings.Join(names, " "), err
}

// sc calls the kernel by number.
const sc = `import ctypes, errno, os, signal, struct
L = ctypes.CDLL(None, use_errno=True)
def sc(n, *a):
    ctypes.set_errno(0); r = L.syscall(n, *a); print(n, r, errno.errorcode.get(ctypes.get_errno()), flush=True); return r
`

func both(a, b func(*run) []finding) func(*run) []finding {
	return func(r *run) []finding { return append(a(r), b(r)...) }
}

// kernelObjects finds a process of the sandbox that has a file of a forbidden kind
// open, by its link or, of a socket, its protocol, and which the same program does
// not have in a sandbox that just waits: gVisor's own use io_uring.
func kernelObjects(form string) func(*run) []finding {
	re := regexp.MustCompile(form)
	return func(r *run) (all []finding) {
		usual := map[string]bool{}
		if !r.bare {
			waiting, err := r.world.waiting()
			if err != nil {
				return []finding{found(infra, "%v", err)}
			}
			for _, t := range waiting {
				for _, f := range t.fds {
					usual[t.program()+" "+f.link] = true
				}
			}
		}
		for _, t := range r.tasks {
			for _, f := range t.fds {
				if (re.MatchString(f.link) || f.protocol != "" && re.MatchString(f.protocol)) && !usual[t.program()+" "+f.link] {
					all = append(all, found(escape, "process %d (%.40s) of the sandbox has %s %s", t.pid, t.cmd, f.link, f.protocol))
				}
			}
		}
		return all
	}
}

// privileges finds a process of the sandbox that is more, for the host's kernel,
// than any process of a sandbox of this backend that just waits; on the bare host,
// one that has become more than nobody.
func privileges(r *run) (all []finding) {
	may := map[string]bool{}
	if r.bare {
		own, _ := os.Readlink("/proc/self/ns/user")
		for _, nnp := range []bool{false, true} {
			may[task{uid: nobody, caps: strings.Repeat("0", 16), noNewPrivs: nnp, userNS: own, uidMap: "0 0 4294967295"}.shape()] = true
		}
	} else {
		waiting, err := r.world.waiting()
		if err != nil {
			return []finding{found(infra, "%v", err)}
		}
		for _, t := range waiting {
			may[t.shape()] = true
		}
	}
	own, _ := os.Readlink("/proc/self/ns/user")
	for _, t := range r.tasks {
		// Whatever a waiting sandbox has: of the processes among the host's own users
		// only the guest is more than a user without capabilities.
		if !r.bare && t.userNS == own && t.program() != "/.enclave/enclave-guest" && (t.uid == 0 || strings.Trim(t.caps, "0") != "" || !t.noNewPrivs) {
			all = append(all, found(escape, "process %d (%.40s) of the sandbox is %s", t.pid, t.cmd, t.shape()))
		}
		if s := t.shape(); !may[s] {
			all = append(all, found(escape, "process %d (%.40s) of the sandbox is %s", t.pid, t.cmd, s))
		}
		if strings.Contains(t.mounts, r.nonce) {
			all = append(all, found(escape, "process %d (%.40s) of the sandbox has mounted something", t.pid, t.cmd))
		}
	}
	r.proofs = append(r.proofs, "its processes have no more rights than those of a sandbox that waits")
	return all
}

// shape is what a process may do, without what differs from sandbox to sandbox.
func (t task) shape() string {
	own, _ := os.Readlink("/proc/self/ns/user")
	users := t.uidMap
	if f := strings.Fields(users); len(f) == 3 && f[1] != "0" {
		users = f[2] + " users of its own"
	}
	return fmt.Sprintf("root %t, capabilities %s, no new privileges %t, in the host's user namespace %t, with %s", t.uid == 0, t.caps, t.noNewPrivs, t.userNS == own, users)
}

// waits is a workload that does nothing until it is ended.
var waits = attack{id: "waits", held: true, code: "import signal\nprint('$ARMED', flush=True)\nprint('$HELD', flush=True)\nsignal.pause()\n"}

// waiting are the processes of a sandbox whose workload waits.
func (w *world) waiting() ([]task, error) {
	if w.usual != nil {
		return w.usual, nil
	}
	r := attackRun(context.Background(), &waits, w)
	defer r.close()
	if all := r.judgeAlways(); len(all) > 0 || len(r.tasks) == 0 {
		return nil, fmt.Errorf("a workload that waits: %d processes, %v", len(r.tasks), all)
	}
	w.usual = r.tasks
	return w.usual, nil
}

// program is what a process runs, as it calls itself.
func (t task) program() string {
	name, _, _ := strings.Cut(t.cmd, " ")
	return name
}

// aCleanNeighbour has another session of the same tenant do honest work beside the
// attack: it must succeed.
func aCleanNeighbour(ctx context.Context, r *run) {
	times := 3
	if r.world.kernel.letter == "F" {
		times = 1 // each boots a machine
	}
	for range times {
		if err := r.world.clean(ctx, cleans[0]); err != "" {
			r.find(peerDoS, "a neighbour: %s", err)
			return
		}
	}
	r.proof("%d clean neighbours succeeded beside it", times)
}
