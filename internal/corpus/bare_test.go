package corpus

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/backend/local/cgroup"
)

// A control is where an attack must break.
type control struct {
	what string // what is missing there
	run  func(ctx context.Context, a *attack, w *world) *run
	// everywhere has it run on each backend; otherwise once is enough.
	everywhere bool
}

// allowing runs the attack in a session on the same backend whose request is
// changed to allow it.
func allowing(what string, change func(r *run, req *enclave.SessionRequest)) control {
	return control{what: what, everywhere: true, run: func(ctx context.Context, a *attack, w *world) *run {
		return planeRun(ctx, a, w, "control: "+what, change)
	}}
}

// A bare control runs the code on this host as root: in an overlay of its root
// directory, whose upper side is kept and looked at, in a network without links,
// in process, IPC and host name namespaces and a control group of its own. What it
// writes to files stays in the overlay. What is one for the whole machine, such as
// core_pattern, is a stand-in file there.
type bare struct {
	user     int  // 0 is root with all capabilities
	hostProc bool // it sees the processes of the host; else its own
	image    bool // on an overlay of the image; else of this host's root directory
	cgroups  bool // it sees the host's control groups
	// plant changes the victim's root directory before the code runs.
	plant func(r *run, root string) error
	// inherit are open directories that a careless runtime leaves to the code.
	inherit func(r *run) string
	// network is the host's; else one without links.
	network bool
	// sinks is the network in which everything that is sent arrives.
	sinks bool
	// work are files below /work.
	work map[string]string
	// companion is a program of the host that runs beside the code, and ends once
	// the code is armed.
	companion bool
	// look is what a careless host does with a held victim, whose root directory
	// is root.
	look func(r *run, root string) error
	// stand are kernel settings for which a file stands in.
	stand []string
	limit time.Duration // 0 is 30 s
	// What its control group has: 256 and 1 GiB, unless they say otherwise.
	pids, memory int64
}

func onBare(b bare) control {
	return control{what: "no sandbox", run: func(ctx context.Context, a *attack, w *world) *run {
		r := newControl(a, w, "control: no sandbox")
		if r.infra != nil {
			return r
		}
		if r.infra = w.sinks.begin(r.nonce); r.infra != nil {
			return r
		}
		if a.prepare != nil {
			r.infra = a.prepare(r)
		}
		if r.infra == nil {
			r.meter = newMeter("enclave-corpus/bare-*", r.flagPath)
			r.infra = b.execute(ctx, r)
			r.meter.end()
		}
		r.settle()
		r.infra = errors.Join(r.infra, r.hear())
		return r
	}}
}

const victim = `set -e
for g in $GROUPS_TO_JOIN; do echo 0 > $g/cgroup.procs; done
mount --make-rprivate /
mount -t overlay none -o lowerdir=$LOWER,upperdir=$SCRATCH/up,workdir=$SCRATCH/work $SCRATCH/root
cd $SCRATCH/root
mount --rbind /dev dev
mount -t tmpfs -o size=256m,mode=1777 none dev/shm
mount -t tmpfs -o size=256m,mode=1777 none tmp
mkdir -p work && mount -t tmpfs -o size=256m,mode=1777 none work
if [ -d "$SCRATCH/files" ]; then cp -r $SCRATCH/files/. work/; fi
if [ -n "$HOSTPROC" ]; then mount --rbind /proc proc; else mount -t proc none proc; fi
if [ -n "$CGROUPS" ]; then mount --rbind /sys sys; else mount -t sysfs none sys; fi
mkdir -p ./$FLAGDIR && mount --bind $FLAGDIR ./$FLAGDIR
for s in $STAND; do
  f=$SCRATCH/stand/$(echo $s | tr / _); echo untouched > $f; chmod 666 $f
  if [ -e .$s ]; then mount --bind $f .$s; fi
done
if [ -n "$COMPANION" ]; then $COMPANION 1000 & fi
if [ -n "$IMAGE" ]; then exec chroot --userspec=$USERSPEC $SCRATCH/root "$@"; fi
# Not by chroot: the kernel refuses user namespaces to who is in one.
mkdir -p .old
pivot_root . .old
umount -l .old
exec chroot --userspec=$USERSPEC / "$@"
`

// execute runs r's code where nothing contains it, and looks at what it did.
func (b bare) execute(ctx context.Context, r *run) (err error) {
	scratch, err := os.MkdirTemp("/var/tmp", ours+"bare-")
	if err != nil {
		return err
	}
	r.cleanup(func() { os.RemoveAll(scratch) })
	for _, d := range []string{"up", "work", "root", "stand"} {
		if err := os.Mkdir(filepath.Join(scratch, d), 0o755); err != nil {
			return err
		}
	}
	if err := os.Chmod(scratch, 0o755); err != nil {
		return err
	}
	if len(b.work) > 0 {
		if err := os.CopyFS(filepath.Join(scratch, "files"), inMemory(b.work)); err != nil {
			return err
		}
	}
	tree, err := cgroup.Host()
	if err != nil {
		return err
	}
	group, err := tree.Group("enclave-corpus", "bare-"+random()[:12])
	if err != nil {
		return err
	}
	if err := group.Make(cgroup.Limits{Memory: cmp.Or(b.memory, 1<<30), Pids: cmp.Or(b.pids, 256)}); err != nil {
		return err
	}
	defer func() {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
		defer cancel()
		err = errors.Join(err, group.Kill(clean), group.Remove())
	}()
	lower := "/"
	if b.image {
		lower = r.world.rootfs
	}
	if b.plant != nil {
		if err := b.plant(r, filepath.Join(scratch, "up")); err != nil {
			return err
		}
	}
	planted, err := treeOf(filepath.Join(scratch, "up"))
	if err != nil {
		return err
	}
	if b.limit == 0 {
		b.limit = 30 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, b.limit)
	defer cancel()
	code := r.fill(r.attack.code)
	argv := map[string][]string{"": {"python3", "-c", code}, "python": {"python3", "-c", code}, "bash": {"bash", "-c", code}}[r.attack.language]
	argv = append([]string{"sh", "-c", victim, "sh"}, argv...)
	if b.sinks {
		argv = append([]string{"nsenter", "--net=" + r.world.sinks.path()}, argv...)
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	set := func(k, v string) { cmd.Env = append(cmd.Env, k+"="+v) }
	cmd.Env = os.Environ()
	set("SCRATCH", scratch)
	set("LOWER", lower)
	set("GROUPS_TO_JOIN", strings.Join(group.Dirs(), " "))
	set("STAND", strings.Join(b.stand, " "))
	set("USERSPEC", fmt.Sprintf("%d:%d", b.user, b.user))
	set("FLAGDIR", filepath.Dir(r.flagPath))
	set("HOSTPROC", map[bool]string{true: "1"}[b.hostProc])
	set("IMAGE", map[bool]string{true: "1"}[b.image])
	set("CGROUPS", map[bool]string{true: "1"}[b.cgroups])
	companion := filepath.Join(scratch, "companion")
	if b.companion {
		if err := copyProgram("sleep", companion); err != nil {
			return err
		}
		set("COMPANION", companion)
	}
	companionWas := inode(companion)
	flags := syscall.CLONE_NEWNS | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS
	if !b.network && !b.sinks {
		flags |= syscall.CLONE_NEWNET
	}
	if !b.hostProc {
		flags |= syscall.CLONE_NEWPID
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: uintptr(flags), Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 5 * time.Second
	if b.inherit != nil {
		f, err := os.Open(b.inherit(r))
		if err != nil {
			return err
		}
		defer f.Close()
		cmd.ExtraFiles = []*os.File{f}
	}
	if err := r.plant(); err != nil {
		return err
	}
	out := &held{want: "HELD " + r.nonce, seen: make(chan struct{})}
	armed := &held{want: r.receipt(), seen: make(chan struct{})}
	var problem bytes.Buffer
	cmd.Stdout, cmd.Stderr = io.MultiWriter(out, armed), &problem
	if err := cmd.Start(); err != nil {
		return err
	}
	if b.companion {
		select {
		case <-armed.seen:
			for _, t := range tasksIn(group.Path()) {
				if t.program() == companion {
					err = errors.Join(err, syscall.Kill(t.pid, syscall.SIGKILL))
				}
			}
		case <-ctx.Done():
		}
		if err != nil {
			return err
		}
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case <-out.seen:
		r.held = true
		r.tasks = tasksIn(group.Path())
		if r.marks, err = marks(r.nonce, inside(r.tasks)); err != nil {
			return err
		}
		if b.look != nil && len(r.tasks) > 0 {
			if err := b.look(r, fmt.Sprintf("/proc/%d/root", r.tasks[0].pid)); err != nil {
				return err
			}
		}
		if err := group.Kill(ctx); err != nil {
			return err
		}
		<-done
	case err := <-done: // however it ended: the host is the witness
		if e := (*exec.ExitError)(nil); errors.As(err, &e) {
			r.signal = e.Sys().(syscall.WaitStatus).Signal()
		}
	}
	r.outlived = ctx.Err() != nil
	r.result.Stdout, r.result.Stderr = out.String(), problem.String()
	r.surfaces = append(r.surfaces, surface{"standard output", []byte(out.String())}, surface{"standard error", problem.Bytes()})
	seen, err := marks(r.nonce, inside(r.tasks))
	if err != nil {
		return err
	}
	r.marks = append(r.marks, seen...)
	now, err := treeOf(filepath.Join(scratch, "up"))
	if err != nil {
		return err
	}
	for p, was := range now {
		if before, ok := planted[p]; !ok || before != was {
			r.changed = append(r.changed, "/"+p+" of the host was written")
		}
	}
	r.changed = append(r.changed, r.flagChanged()...)
	if now := inode(companion); now != companionWas {
		r.changed = append(r.changed, "a program of the host was written")
	}
	for _, s := range b.stand {
		got, err := os.ReadFile(filepath.Join(scratch, "stand", strings.ReplaceAll(s, "/", "_")))
		if err == nil && string(got) != "untouched\n" {
			r.changed = append(r.changed, fmt.Sprintf("%s of the host is %.40q", s, got))
		}
	}
	return nil
}

// copyProgram copies a program of this host to path.
func copyProgram(name, path string) error {
	from, err := exec.LookPath(name)
	if err != nil {
		return err
	}
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, b, 0o755))
}

// treeOf returns what is in a directory but for directories.
func treeOf(dir string) (map[string]string, error) {
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		all[rel] = inode(p)
		return err
	})
	return all, err
}

// held is an output that says when a line was in it.
type held struct {
	want string
	seen chan struct{}

	mu   sync.Mutex
	b    bytes.Buffer
	said bool
}

func (h *held) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.b.Write(p)
	if !h.said && strings.Contains(h.b.String(), h.want) {
		h.said = true
		close(h.seen)
	}
	return len(p), nil
}

func (h *held) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.b.String()
}
