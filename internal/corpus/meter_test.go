package corpus

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// bounds are the most that an attack may take of the host: of one sandbox, and of
// the control plane for it. 0 is not looked at.
type bounds struct {
	tasks  int64 // processes and threads in the sandbox's control group
	memory int64 // bytes that are charged to it
	disk   int64 // bytes in the directory of the sandboxes
	rss    int64 // bytes by which the control plane's memory grew
	fds    int64 // descriptors by which the control plane's grew
	opened int64 // open files by which the whole host's grew
}

// A meter looks at the host's counters again and again, and keeps the highest.
type meter struct {
	groups string // pattern of the control groups' names: parent/name
	dir    string
	start  bounds
	peak   bounds
	began  time.Time
	lasted time.Duration
	stop   chan struct{}
	done   chan struct{}
}

// meterTick is short against the time in which a bomb goes off.
const meterTick = 10 * time.Millisecond

// newMeter begins to look. Groups are those of a sandbox, or of a control's victim.
func newMeter(groups, dir string) *meter {
	m := &meter{groups: groups, dir: dir, began: time.Now(), stop: make(chan struct{}), done: make(chan struct{})}
	m.start = m.look()
	go func() {
		defer close(m.done)
		t := time.NewTicker(meterTick)
		defer t.Stop()
		for {
			now := m.look()
			for _, c := range []struct {
				peak *int64
				now  int64
			}{{&m.peak.tasks, now.tasks}, {&m.peak.memory, now.memory}, {&m.peak.disk, now.disk}, {&m.peak.rss, now.rss}, {&m.peak.fds, now.fds}, {&m.peak.opened, now.opened}} {
				*c.peak = max(*c.peak, c.now)
			}
			select {
			case <-m.stop:
				return
			case <-t.C:
			}
		}
	}()
	return m
}

// end stops looking. What belongs to the control plane and the host is from then on
// what it grew by.
func (m *meter) end() {
	close(m.stop)
	<-m.done
	m.lasted = time.Since(m.began)
	m.peak.disk -= m.start.disk
	m.peak.rss -= m.start.rss
	m.peak.fds -= m.start.fds
	m.peak.opened -= m.start.opened
}

func (m *meter) look() (b bounds) {
	largest := func(pattern string) (n int64) {
		files, _ := filepath.Glob(pattern) // the pattern is a constant
		for _, f := range files {
			n = max(n, number(f, 0))
		}
		return n
	}
	b.tasks = largest("/sys/fs/cgroup/pids/" + m.groups + "/pids.current")
	b.tasks = max(b.tasks, largest("/sys/fs/cgroup/"+m.groups+"/pids.current"))
	b.memory = largest("/sys/fs/cgroup/memory/" + m.groups + "/memory.usage_in_bytes")
	b.memory = max(b.memory, largest("/sys/fs/cgroup/"+m.groups+"/memory.current"))
	b.rss = number("/proc/self/statm", 1) * int64(os.Getpagesize())
	if fds, err := os.ReadDir("/proc/self/fd"); err == nil {
		b.fds = int64(len(fds))
	}
	b.opened = number("/proc/sys/fs/file-nr", 0)
	_ = filepath.Walk(m.dir, func(_ string, fi os.FileInfo, err error) error {
		if err == nil { // a sandbox may go while it is looked at
			if st, ok := fi.Sys().(*syscall.Stat_t); ok && fi.Mode().IsRegular() && st.Nlink == 1 {
				b.disk += st.Blocks * 512
			}
		}
		return nil
	})
	return b
}

// number is a field of a file of the kernel's; 0 if it can't be read.
func number(path string, field int) int64 {
	raw, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	f := strings.Fields(string(raw))
	if len(f) <= field {
		return 0
	}
	n, _ := strconv.ParseInt(f[field], 10, 64)
	return n
}

// over is a bound above what is there before the attack; no bound stays none.
func over(bound, idle int64) int64 {
	if bound == 0 {
		return 0
	}
	return bound + idle
}

// judgeBounds finds what grew past a bound.
func (r *run) judgeBounds() (all []finding) {
	b := r.attack.bounds
	if b == nil || r.meter == nil {
		return nil
	}
	for _, c := range []struct {
		what       string
		most, peak int64
	}{
		{"tasks of the sandbox on this host", b.tasks, r.meter.peak.tasks},
		{"bytes of memory charged to the sandbox", over(b.memory, r.world.kernel.idle()), r.meter.peak.memory},
		{"bytes on this host's disk", b.disk, r.meter.peak.disk},
		{"bytes of memory more in the control plane", b.rss, r.meter.peak.rss},
		{"descriptors more in the control plane", b.fds, r.meter.peak.fds},
		{"open files more on this host", b.opened, r.meter.peak.opened},
	} {
		if c.most == 0 {
			continue
		}
		if c.peak > c.most {
			all = append(all, found(hostDoS, "%d %s, of at most %d", c.peak, c.what, c.most))
		}
		r.proof("%d %s, of at most %d", c.peak, c.what, c.most)
	}
	if (b.tasks > 0 || b.memory > 0) && r.meter.peak.tasks == 0 && r.world.kernel.letter != "S" {
		all = append(all, found(vacuous, "the control group was never seen"))
	}
	r.proof("it took %s", r.meter.lasted.Round(time.Millisecond))
	return all
}

// endless finds a control that only the harness has ended.
func endless(r *run) []finding {
	if r.bare && r.outlived {
		return []finding{found(hostDoS, "nobody ended it in %s", r.meter.lasted.Round(time.Second))}
	}
	return nil
}
