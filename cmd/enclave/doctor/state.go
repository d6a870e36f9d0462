package doctor

import (
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/enclave-run/enclave/internal/request"
)

type (
	// directory is the state directory, or where it will be.
	directory struct {
		path      string
		exists    bool // else what follows is of the nearest directory above
		uid       int
		mode      fs.FileMode
		trust     error  // why others could put another in its place
		fsType    string // "ext4"
		noExec    bool
		readOnly  bool
		free      int64 // bytes
		freeFiles int64 // inodes; a file system that does not count them has -1
	}

	database struct {
		exists      bool
		have, knows int64 // versions: the file's, and what this program can read
		held        bool  // a server has it open
	}

	server struct {
		held   bool
		pid    int
		mode   string
		listen string // host:port, or empty
		tls    bool
		alive  error // why it does not answer
		ready  error // why it can't run sessions
	}
)

// networkFS lose the guarantees of locks and of fsync that the database stands on
// (sqlite.org/lockingv3.html, section 6).
var networkFS = []string{"nfs", "cifs", "smb2", "9p", "fuse", "ceph", "afs"}

var stateChecks = []check{
	{"state directory", "owner", "Nobody but Enclave's user can change the state directory.", func(h *host) verdict {
		d, err := h.dir.get()
		if err != nil {
			return unknown(err)
		}
		switch {
		case d.exists && d.uid != h.euid:
			return fail("run Enclave as its owner, or choose another directory with --state", "%s belongs to user %d, and we are user %d", d.path, d.uid, h.euid)
		case d.exists && d.mode.Perm()&0o022 != 0:
			return fail("choose another directory with --state: what is in this one may be another's", "%s has mode %04o", d.path, d.mode.Perm())
		case d.trust != nil:
			return fail("choose another directory with --state", "others may put another directory in its place: %v", d.trust)
		case !d.exists:
			return pass("%s is made at the first start", d.path)
		}
		return pass("%s, mode %04o", d.path, d.mode.Perm())
	}},
	{"state directory", "file system", "The state directory is on a local disk that keeps what is written to it.", func(h *host) verdict {
		d, err := h.dir.get()
		if err != nil {
			return unknown(err)
		}
		switch {
		case d.readOnly:
			return fail("remount it writable, or choose another directory with --state", "%s, read-only", d.fsType)
		case d.noExec:
			return fail("remount it without noexec, or choose another directory with --state: gVisor is unpacked there", "%s, noexec", d.fsType)
		case slices.Contains(networkFS, d.fsType):
			return fail("choose a directory on a local disk with --state", "%s: a database on it can be damaged", d.fsType)
		case d.fsType == "tmpfs" || d.fsType == "ramfs":
			return warn("choose a directory on a disk with --state", "%s: sessions and their record are gone when the host restarts", d.fsType)
		case d.fsType == "overlay":
			return warn("mount a volume and name it with --state", "overlay: sessions and their record are gone with the container")
		}
		return pass("%s", d.fsType)
	}},
	{"state directory", "space", "There is room for the image, the record and the sandboxes' disks.", func(h *host) verdict {
		d, err := h.dir.get()
		if err != nil {
			return unknown(err)
		}
		ceiling := request.DefaultCeilings().DiskMB * mib
		detail := size(d.free) + " free"
		if d.freeFiles >= 0 {
			detail += fmt.Sprintf(", %d files", d.freeFiles)
		}
		const do = "free space, or choose a larger disk with --state"
		switch {
		case d.free < gib || d.freeFiles >= 0 && d.freeFiles < 10_000:
			return fail(do, "%s", detail)
		case d.free < ceiling:
			return warn(do, "%s: less than the %s that one session may ask for at most", detail, size(ceiling))
		case d.freeFiles >= 0 && d.freeFiles < 100_000:
			return warn(do, "%s: an image has tens of thousands", detail)
		}
		return pass("%s", detail)
	}},
	{"state directory", "durability", "What is synced is accepted by the disk.", func(h *host) verdict {
		took, err := h.sync.get()
		if err != nil {
			return fail("look at the kernel's log (dmesg) for errors of the disk, and choose another with --state", "%v", err)
		}
		return pass("a sync took %s", took.Round(10*time.Microsecond))
	}},
	{"state directory", "database", "This program can read the database that is there.", func(h *host) verdict {
		d, err := h.database.get()
		if err != nil {
			return fail("restore it from a copy, or choose another directory with --state", "%v", err)
		}
		switch {
		case d.held:
			return pass("a server has it open")
		case !d.exists:
			return pass("there is none yet")
		case d.have > d.knows:
			return fail("use the newer Enclave that made it, or another directory with --state", "it has version %d, this program knows %d", d.have, d.knows)
		}
		return pass("version %d", d.have)
	}},
	{"server", "answers", "The control plane that has the state directory answers.", func(h *host) verdict {
		s, err := h.server.get()
		if err != nil {
			return unknown(err)
		}
		switch {
		case !s.held:
			return skip("none runs on this state directory")
		case s.alive != nil:
			return fail(fmt.Sprintf("look at its log; if it hangs, kill -9 %d and start it again: nothing acknowledged is lost", s.pid), "process %d (%s) does not: %v", s.pid, s.mode, s.alive)
		}
		return pass("process %d (%s)", s.pid, s.mode)
	}},
	{"server", "ready", "It can run sessions.", func(h *host) verdict {
		s, err := h.server.get()
		if err != nil {
			return unknown(err)
		}
		switch {
		case !s.held || s.alive != nil:
			return skip("no server answers")
		case s.ready != nil:
			return warn("wait until the image is built, or look at its log", "%v", s.ready)
		}
		return pass("it says so")
	}},
	{"server", "address", "Credentials are never sent in the clear: it listens on a loopback address, or with TLS.", func(h *host) verdict {
		s, err := h.server.get()
		if err != nil {
			return unknown(err)
		}
		switch {
		case !s.held:
			return skip("none runs on this state directory")
		case s.listen == "":
			return pass("on its socket alone")
		case s.tls:
			return pass("%s, TLS", s.listen)
		case !loopback(s.listen):
			return fail("restart it with TLS, or on 127.0.0.1 behind a proxy that has it", "%s, without TLS", s.listen)
		}
		return pass("%s", s.listen)
	}},
}
