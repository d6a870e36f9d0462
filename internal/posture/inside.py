# Describes a sandbox as a workload sees it: prints a JSON list of facts, each one
# line, without names that differ from run to run.
import ctypes, errno, glob, json, os, re, resource, socket, stat, struct

facts = set()
libc = ctypes.CDLL(None, use_errno=True)


def add(*words):
    facts.add(" ".join(str(w) for w in words))


def read(path):
    try:
        with open(path, "rb") as f:
            return f.read(1 << 20).decode("utf-8", "replace")
    except OSError as e:
        return "refused: " + errno.errorcode.get(e.errno, str(e.errno))


CAPS = """CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE
NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE
SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL
SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE""".split()

# Who it is and what it may.
add("uids", *os.getresuid())
add("gids", *os.getresgid())
add("groups", *os.getgroups())
for pid in [p for p in os.listdir("/proc") if p.isdigit()]:
    text = read("/proc/%s/status" % pid)
    if text.startswith("refused"):
        continue
    st = dict(l.split(":", 1) for l in text.splitlines() if ":" in l)
    who = "workload" if os.stat("/proc/" + pid).st_uid == os.getuid() else "guest"
    for k in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        if k in st:
            bits = int(st[k], 16)
            add(who, k, [CAPS[i] if i < len(CAPS) else i for i in range(64) if bits >> i & 1])
    for k in ("NoNewPrivs", "Seccomp", "TracerPid"):
        if k in st:
            add(who, k, st[k].strip())
    add("process", st["Name"].strip(), "uid", *st["Uid"].split())
add("no_new_privs", libc.prctl(39, 0, 0, 0, 0), "dumpable", libc.prctl(3, 0, 0, 0, 0))
old = os.umask(0)
os.umask(old)
add("umask %03o" % old)
add("hostname", os.uname().nodename, "kernel", os.uname().sysname, os.uname().release)
for k in ("ipc", "mnt", "net", "pid", "user", "uts", "cgroup", "time"):
    try:
        add("namespace", k, re.sub(r"\d+", "N", os.readlink("/proc/self/ns/" + k)))
    except OSError:
        add("namespace", k, "not shown")

# What it was given.
for k, v in os.environ.items():
    add("environment %s=%s" % (k, v))
for fd in os.listdir("/proc/self/fd"):
    try:
        to = os.readlink("/proc/self/fd/" + fd)
    except OSError:
        continue  # the listing's own
    add("open file", fd, re.sub(r"\d+", "N", to))
for name in [n for n in dir(resource) if n.startswith("RLIMIT_")]:
    try:
        soft, hard = resource.getrlimit(getattr(resource, name))
    except (OSError, ValueError):
        soft = hard = "none"
    add(name, "soft", soft, "hard", hard)
add("working directory", os.getcwd())

# The files it sees.
for line in read("/proc/self/mountinfo").splitlines():
    f = line.split()
    i = f.index("-")
    add("mount", f[3], "at", f[4], f[5], f[i + 1], re.sub(r"fdno=\d+", "fdno=N", " ".join(f[i + 3 :])))
for entry in os.scandir("/"):
    s = entry.stat(follow_symlinks=False)
    # 65534 is the host's root, whose the image is.
    if s.st_uid != 65534 or (not entry.is_symlink() and s.st_mode & 0o022):
        add("root has", entry.name, stat.filemode(s.st_mode), s.st_uid, s.st_gid)
for top, dirs, files in os.walk("/.enclave"):
    for n in dirs + files:
        s = os.lstat(os.path.join(top, n))
        add("enclave has", n, stat.filemode(s.st_mode), s.st_uid, s.st_gid)
for top, dirs, files in os.walk("/dev"):
    for n in dirs + files:
        p = os.path.join(top, n)
        s = os.lstat(p)
        may = "".join(c for c, m in (("r", os.R_OK), ("w", os.W_OK)) if os.access(p, m))
        what = "%d:%d" % (os.major(s.st_rdev), os.minor(s.st_rdev)) if stat.S_ISCHR(s.st_mode) or stat.S_ISBLK(s.st_mode) else ""
        if not re.fullmatch(r"/dev/(pts/\d+|fd.*|std.*)", p):
            add("device", p, stat.filemode(s.st_mode), what, "may", may)
for top in ("/proc/sys", "/sys"):
    for d, dirs, files in os.walk(top):
        for n in dirs + files:
            p = os.path.join(d, n)
            if not os.path.islink(p) and os.access(p, os.W_OK):
                add("writable", p)
        if top == "/sys" and d != top:
            add("sys has", d)
for n in os.listdir("/proc"):
    if not n.isdigit():
        p = os.path.join("/proc", n)
        may = "".join(c for c, m in (("r", os.R_OK), ("w", os.W_OK)) if os.access(p, m))
        add("proc has", n, stat.filemode(os.lstat(p).st_mode), "may", may)
skip = ("/proc", "/sys", "/dev", "/work", "/tmp")
for d, dirs, files in os.walk("/"):
    dirs[:] = [x for x in dirs if os.path.join(d, x) not in skip]
    if os.access(d, os.W_OK):
        add("writable directory", d)
    for n in files:
        p = os.path.join(d, n)
        try:
            mode = os.lstat(p).st_mode
        except OSError:
            continue
        if stat.S_ISREG(mode) and mode & 0o6000:
            add("set-user-ID", p)
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            add("device file", p)
        if not stat.S_ISLNK(mode) and mode & 0o222 and os.access(p, os.W_OK):
            add("writable file", p)
for d in ("/work", "/tmp"):
    s = os.stat(d)
    add(d, stat.filemode(s.st_mode), s.st_uid, s.st_gid, "writable" if os.access(d, os.W_OK) else "not writable")
    try:
        os.mknod(os.path.join(d, "posture-device"), stat.S_IFCHR | 0o600, os.makedev(1, 3))
        add("made a device in", d)
        os.unlink(os.path.join(d, "posture-device"))
    except OSError as e:
        add("makes no device in", d, errno.errorcode[e.errno])

# The network it has.
for i, name in socket.if_nameindex():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        import fcntl

        def ask(op):
            try:
                return fcntl.ioctl(s, op, struct.pack("256s", name.encode()[:15]))
            except OSError as e:
                return None

        flags, addr, mtu = ask(0x8913), ask(0x8915), ask(0x8921)
        add(
            "interface", name,
            "flags %#x" % struct.unpack("H", flags[16:18])[0] if flags else "no flags",
            socket.inet_ntoa(addr[20:24]) if addr else "no address",
            "mtu %d" % struct.unpack("i", mtu[16:20])[0] if mtu else "no mtu",
        )
for f in ("route", "if_inet6", "ipv6_route"):
    for line in read("/proc/net/" + f).splitlines():
        add("net/" + f, *line.split())
for f in ("resolv.conf", "hosts"):
    for line in read("/etc/" + f).splitlines():
        if line.strip() and not line.startswith("#"):
            add("etc/" + f, *line.split())
for family in range(46):
    for kind, name in ((1, "stream"), (2, "datagram"), (3, "raw"), (5, "seqpacket")):
        try:
            socket.socket(family, kind, 0).close()
            add("socket family", family, name, "opens")
        except OSError as e:
            if e.errno not in (errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT, errno.EAFNOSUPPORT):
                add("socket family", family, name, errno.errorcode.get(e.errno, e.errno))

# What the kernel refuses, by name.
def attempt(name, f, *args):
    ctypes.set_errno(0)
    r = f(*args)
    add("call", name, "SUCCEEDS" if r >= 0 else errno.errorcode.get(ctypes.get_errno(), ctypes.get_errno()))


attempt("setuid(0)", libc.setuid, 0)
attempt("setgid(0)", libc.setgid, 0)
attempt("chroot", libc.chroot, b"/tmp")
attempt("mount", libc.mount, b"x", b"/tmp", b"tmpfs", 0, None)
attempt("umount", libc.umount2, b"/work", 2)
attempt("sethostname", libc.sethostname, b"x", 1)
attempt("ptrace(guest)", libc.ptrace, 16, 1, None, None)
attempt("kill(guest)", libc.kill, 1, 0)
attempt("bpf", lambda: libc.syscall(321 if os.uname().machine == "x86_64" else 280, 0, None, 0))
attempt("io_uring_setup", lambda: libc.syscall(425, 1, ctypes.create_string_buffer(120)))
attempt("userfaultfd", lambda: libc.syscall(323 if os.uname().machine == "x86_64" else 282, 0))
attempt("keyctl", lambda: libc.syscall(250 if os.uname().machine == "x86_64" else 219, 0, -3, 0))
attempt("open(/dev/mem)", libc.open, b"/dev/mem", 0)
attempt("init_module", lambda: libc.syscall(175 if os.uname().machine == "x86_64" else 105, None, 0, b""))


def child(f):
    pid = os.fork()
    if pid == 0:
        r = f()
        os._exit(0 if r >= 0 else ctypes.get_errno())
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    ctypes.set_errno(code)
    return 0 if code == 0 else -1


attempt("unshare(user)", lambda: child(lambda: libc.unshare(0x10000000)))
attempt("unshare(net)", lambda: child(lambda: libc.unshare(0x40000000)))
print(json.dumps(sorted(facts)))
