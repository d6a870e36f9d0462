package qemu

import (
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

const (
	// kept is how much of a guest's console is kept: it may write for ever
	// (CVE-2020-27174).
	kept = 16 << 10

	// saving is how often the console's file may be written.
	saving = 100 * time.Millisecond
)

// A tail keeps the last bytes that were written to it.
type tail struct {
	mu    sync.Mutex // guards what follows
	bytes []byte     // at most twice kept, of which the last count
	file  *os.File   // nil: nowhere
	saved bool       // the file has what bytes has, or a save is due
}

// Write implements io.Writer and never fails.
func (t *tail) Write(p []byte) (int, error) {
	n := len(p)
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(p) > kept {
		p = p[len(p)-kept:]
	}
	t.bytes = append(t.bytes, p...)
	if over := len(t.bytes) - kept; over > kept {
		t.bytes = append(t.bytes[:0], t.bytes[over:]...)
	}
	t.due()
	return n, nil
}

// due sees to it that the file is written soon. t.mu is held.
func (t *tail) due() {
	if t.file != nil && !t.saved {
		t.saved = true
		time.AfterFunc(saving, t.save)
	}
}

// keepIn has f hold what the tail does, from now on. It is called once.
func (t *tail) keepIn(f *os.File) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.file = f
	t.due()
}

// save writes the file. It is one of diagnosis: what can't be written is lost.
func (t *tail) save() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.saved = false
	if t.file == nil {
		return
	}
	b := t.last()
	if _, err := t.file.WriteAt(b, 0); err == nil {
		t.file.Truncate(int64(len(b)))
	}
}

// last is what is kept. t.mu is held.
func (t *tail) last() []byte { return t.bytes[max(0, len(t.bytes)-kept):] }

// lines returns the last n lines that are not empty, joined by sep, without what
// a terminal would obey.
func (t *tail) lines(n int, sep string) string {
	t.mu.Lock()
	text := string(t.last())
	t.mu.Unlock()
	var all []string
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(strings.Map(func(r rune) rune {
			if r < ' ' || r > '~' {
				return -1
			}
			return r
		}, line))
		if line != "" {
			all = append(all, line)
		}
	}
	return strings.Join(all[max(0, len(all)-n):], sep)
}

// drain copies r into t until r ends, and then closes done.
func drain(t *tail, r io.Reader) (done chan struct{}) {
	done = make(chan struct{})
	go func() {
		defer close(done)
		io.Copy(t, r)
	}()
	return done
}
