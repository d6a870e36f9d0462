# Is busy: has processes, threads, files, memory and sockets, and tries the network.
# Says so, and stays as it is until it is killed.
import mmap, os, select, socket, sys, tempfile, threading, time

stay = threading.Event()
for i in range(12):
    if os.fork() == 0:
        with open("/tmp/busy-%d" % i, "wb") as f:
            f.write(b"x" * 65536)
            if i < 4:
                os.execvp("sleep", ["sleep", "100000"])
            stay.wait()
held = []
for i in range(8):
    threading.Thread(target=stay.wait, daemon=True).start()
    held.append(open("/work/busy-%d" % i, "wb"))
    held.append(tempfile.TemporaryFile(dir="/tmp"))
    held.append(socket.socketpair())
    held.append(os.pipe())
    held.append(mmap.mmap(-1, 1 << 20))
for path in ("/etc/passwd", "/etc", "/usr/bin/env", "/dev/null", "/dev/urandom", "/proc/self/maps", "/proc/meminfo"):
    held.append(os.open(path, os.O_RDONLY))
held.append(os.memfd_create("busy"))
held.append(select.epoll())
held.append(os.eventfd(0))
for family, kind, to in (
    (socket.AF_INET, socket.SOCK_STREAM, ("192.0.2.1", 443)),
    (socket.AF_INET, socket.SOCK_DGRAM, ("192.0.2.1", 53)),
    (socket.AF_INET6, socket.SOCK_STREAM, ("2001:db8::1", 443)),
    (socket.AF_INET6, socket.SOCK_DGRAM, ("2001:db8::1", 53)),
):
    s = socket.socket(family, kind)
    s.setblocking(False)
    try:
        s.connect(to)
        if kind == socket.SOCK_DGRAM:
            s.send(b"x")
    except OSError:
        pass
    held.append(s)
listening = socket.socket()
listening.bind(("127.0.0.1", 0))
listening.listen()
held.append(socket.create_connection(listening.getsockname()))
for family in (socket.AF_INET, socket.AF_PACKET):
    try:
        held.append(socket.socket(family, socket.SOCK_RAW, 1))
    except OSError:
        pass
print("busy", flush=True)
stay.wait()
