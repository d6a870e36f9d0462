package doctor

import (
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"
)

type (
	// A program is one that enclave brings along.
	program struct{ name, path, digest string }

	// A picture is the default image.
	picture struct {
		missing bool
		digest  string
		since   time.Time // when it was brought to this host
		size    int64
		now     time.Time
	}
)

var programChecks = []check{
	{"programs", "carried programs", "gVisor and the guest are there and are the ones that this program was built with.", forSandboxes(func(h *host) verdict {
		ps, err := h.programs.get()
		if err != nil {
			return fail("install enclave anew, or build it with `make build`", "%v", err)
		}
		if len(ps) < 2 {
			return fail("install enclave anew, or build it with `make build`", "only %d of 2 programs are there", len(ps))
		}
		var all []string
		for _, p := range ps {
			all = append(all, fmt.Sprintf("%s %.12s", p.name, p.digest))
		}
		return pass("%s", strings.Join(all, ", "))
	})},
	{"programs", "gVisor", "The gVisor that is brought along has no flaw that is known to this program.", forGVisor(func(h *host) verdict {
		day, err := h.gvisor.get()
		if err != nil {
			return unknown(err)
		}
		if day.Before(gvisorFloor) {
			return fail("install a newer enclave", "it is of %s: %s", day.Format(time.DateOnly), gvisorFlaw)
		}
		return pass("of %s", day.Format(time.DateOnly))
	})},
	{"image", "default image", "The image that sandboxes start from is there and undamaged.", forSandboxes(func(h *host) verdict {
		p, err := h.image.get()
		if err != nil {
			return fail("remove it with `enclave image remove default` and build it anew with `enclave image build`", "%v", err)
		}
		if p.missing {
			return warn("make it: enclave image build, or enclave image pull REF; the first start does it as well", "there is none yet")
		}
		return pass("%.19s, %s, digests verified", p.digest, size(p.size))
	})},
	{"image", "age", "The image was built or brought here in the last three months.", forSandboxes(func(h *host) verdict {
		p, err := h.image.get()
		if err != nil || p.missing {
			return skip("there is no image to look at")
		}
		if age := p.now.Sub(p.since); age > 92*24*time.Hour {
			return warn("build it anew, with the packages of today: enclave image build", "%s, %d days ago", p.since.Format(time.DateOnly), int(age.Hours()/24))
		}
		return pass("%s", p.since.Format(time.DateOnly))
	})},
}

type (
	keyFile struct {
		exists bool
		path   string
		uid    int
		mode   fs.FileMode
	}

	// A record is what a server says of its audit log.
	record struct {
		held   bool   // a server was asked
		second string // where checkpoints are written as well; empty: nowhere
		told   bool   // whether the server could be asked for second
	}
)

var serviceChecks = []check{
	{"network", "gateway", "The process that judges all traffic runs as a user of its own, without capabilities, behind a filter of system calls.", func(h *host) verdict {
		if h.euid != 0 {
			return skip("only root can give it a user of its own")
		}
		if _, err := h.gateway.get(); err != nil {
			return fail("the message says what it lacks; most often it is a container without the right to change users or set filters", "%v", err)
		}
		return pass("one was started; the kernel confirms it")
	}},
	{"network", "gateway's user", "Nobody else is the user that the gateway runs as.", func(h *host) verdict {
		who, err := h.neighbor.get()
		if err != nil {
			return unknown(err)
		}
		if who != "" {
			return warn("give them another user id: they could send signals to the gateway", "user %d is also %s", h.gatewayUser, who)
		}
		return pass("user %d", h.gatewayUser)
	}},
	{"network", "addresses of this host", "No session can be allowed an address of this host.", func(h *host) verdict {
		open, err := h.open.get()
		if err != nil {
			return unknown(err)
		}
		if len(open) > 0 {
			return fail("restart the server: it learns the host's addresses when it starts", "a session could be allowed %s", strings.Join(open, ", "))
		}
		return pass("all of them are denied")
	}},
	{"audit", "key", "Nobody but Enclave's user can read the key that signs the record.", func(h *host) verdict {
		k, err := h.auditKey.get()
		if err != nil {
			return unknown(err)
		}
		switch {
		case !k.exists:
			return skip("it is made at the first start")
		case k.uid != h.euid || k.mode.Perm()&0o077 != 0:
			return fail(fmt.Sprintf("chown %d %s && chmod 600 %s; if others could read it, rotate it", h.euid, k.path, k.path), "%s belongs to user %d and has mode %04o", k.path, k.uid, k.mode.Perm())
		}
		return pass("mode %04o", k.mode.Perm())
	}},
	{"audit", "checkpoint", "The record is signed as it grows.", func(h *host) verdict {
		r, err := h.audit.get()
		if err != nil {
			return fail("look at the server's log: sessions whose events are not signed can be altered unnoticed", "%v", err)
		}
		if !r.held {
			return skip("no server runs on this state directory")
		}
		return pass("the server gives a signed checkpoint")
	}},
	{"audit", "second path", "Checkpoints are written to a second place, where who alters the first does not reach.", func(h *host) verdict {
		r, err := h.audit.get()
		switch {
		case err != nil || !r.held || !r.told:
			return skip("no server says")
		case r.second == "":
			return warn("start it with --checkpoint-file FILE, on another disk or host", "the server has none")
		case h.dir.value.path != "" && strings.HasPrefix(r.second, h.dir.value.path+"/"):
			return warn("name a file on another disk or host", "%s is in the state directory itself", r.second)
		}
		return pass("%s", r.second)
	}},
}

// gvisorFloor is the first day whose gVisor has no flaw in gvisorFlaw.
var gvisorFloor = time.Date(2025, 3, 28, 0, 0, 0, 0, time.UTC)

const gvisorFlaw = "before 2025-03-28 file permissions were checked wrongly (CVE-2025-2713) and mount references counted wrongly (CVE-2023-7258)"

// older reports whether version v comes before the fix in its branch. A branch is
// named by the first two numbers; one that is older than all of them comes before,
// one that is newer does not.
func older(v string, fixed []string) (bool, bool) {
	have, ok := numbers(v)
	if !ok {
		return false, false
	}
	var last []int
	for _, f := range fixed {
		fix, ok := numbers(f)
		if !ok {
			return false, false
		}
		last = fix
		if len(have) > 1 && len(fix) > 1 && slices.Equal(have[:2], fix[:2]) {
			return slices.Compare(have, fix) < 0, true
		}
	}
	return slices.Compare(have, last) < 0, true
}

// numbers reads the numbers that a version begins with: "v1.1.5+ds1" is 1 1 5. A
// release candidate is taken for the release: its fixes can't be told.
func numbers(v string) ([]int, bool) {
	v = strings.TrimPrefix(v, "v")
	if i := strings.IndexFunc(v, func(r rune) bool { return r != '.' && (r < '0' || r > '9') }); i >= 0 {
		v = v[:i]
	}
	var all []int
	for part := range strings.SplitSeq(v, ".") {
		n := 0
		if _, err := fmt.Sscanf(part, "%d", &n); err != nil {
			return nil, false
		}
		all = append(all, n)
	}
	return all, true
}
