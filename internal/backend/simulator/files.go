package simulator

import (
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/enclave-run/enclave/internal/wire"
)

// files are those that the core or the code put under /work and /tmp. A model
// has no others.
type files struct {
	mu          sync.Mutex
	limit, left int64 // bytes
	all         map[string]*file
}

type file struct {
	dir  bool
	mode fs.FileMode
	data []byte
	size int64 // may exceed data: a model keeps no content that nobody reads
	at   time.Time
}

// maxKept bounds what a model keeps of one file's content.
const maxKept = 32 << 20

func newFiles(limit int64) *files {
	dir := func() *file { return &file{dir: true, mode: 0o755, at: time.Now()} }
	return &files{limit: limit, left: limit, all: map[string]*file{"/work": dir(), "/tmp": dir()}}
}

// place returns the canonical path of a file that may be written.
func place(name string) (string, error) {
	if name == "" || strings.ContainsRune(name, 0) || len(name) > 4096 {
		return "", bad("%.80q is not a path", name)
	}
	p := name
	if !path.IsAbs(p) {
		p = path.Join(wire.WorkDir, p)
	}
	p = path.Clean(p)
	if p != "/work" && p != "/tmp" && !strings.HasPrefix(p, "/work/") && !strings.HasPrefix(p, "/tmp/") {
		return "", &wire.CallError{Code: wire.CodePermission, Detail: p + " is read-only"}
	}
	return p, nil
}

// grow makes the file at name n bytes larger; b is what is known of them. It
// reports false if the disk limit is exceeded.
func (f *files) grow(name string, b []byte, n int64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n > f.left {
		return false
	}
	f.left -= n
	x := f.all[name]
	if x == nil {
		x = &file{mode: 0o644}
		f.all[name] = x
	}
	x.at = time.Now()
	x.size += n
	if int64(len(x.data)+len(b)) == x.size && x.size <= maxKept {
		x.data = append(x.data, b...)
	}
	return true
}

// fill takes n bytes, which are there, for files of which no more is known.
func (f *files) fill(n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.left -= n
}

// used returns how many bytes all files have.
func (f *files) used() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.limit - f.left
}

// content returns what is known of a file's content.
func (f *files) content(name string) (string, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	x := f.all[name]
	if x == nil || x.dir {
		return "", false
	}
	return string(x.data), true
}

func (f *files) dirs(name string) {
	for d := path.Dir(name); f.all[d] == nil && len(d) > 1; d = path.Dir(d) {
		f.all[d] = &file{dir: true, mode: 0o755, at: time.Now()}
	}
}

func (f *files) stat(w http.ResponseWriter, r *http.Request) error {
	p, err := place(r.URL.Query().Get("path"))
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	x := f.all[p]
	if x == nil {
		return &wire.CallError{Code: wire.CodeNotFound, Detail: p}
	}
	m := x.mode
	if x.dir {
		m |= fs.ModeDir
	}
	return reply(w, wire.FileInfo{Name: path.Base(p), Size: x.size, Mode: uint32(m), ModTime: x.at.UnixNano()})
}

func (f *files) put(w http.ResponseWriter, r *http.Request) error {
	p, err := place(r.URL.Query().Get("path"))
	if err != nil {
		return err
	}
	mode, err := strconv.ParseUint(r.URL.Query().Get("mode"), 8, 32)
	if err != nil || mode > 0o777 {
		return bad("the mode %q is none", r.URL.Query().Get("mode"))
	}
	f.mu.Lock()
	left := min(f.left, maxKept)
	f.mu.Unlock()
	b, err := io.ReadAll(io.LimitReader(r.Body, left+1))
	if err != nil {
		return fmt.Errorf("read the content: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var was int64
	if old := f.all[p]; old != nil && old.dir {
		return &wire.CallError{Code: wire.CodeExists, Detail: p}
	} else if old != nil {
		was = old.size
	}
	if n := int64(len(b)); n > left || n > f.left+was {
		return &wire.CallError{Code: wire.CodeNoSpace, Detail: p}
	}
	f.left += was - int64(len(b))
	f.dirs(p)
	f.all[p] = &file{mode: fs.FileMode(mode), data: b, size: int64(len(b)), at: time.Now()}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// truncate empties the file at name.
func (f *files) truncate(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if x := f.all[name]; x != nil && !x.dir {
		f.left += x.size
	}
	f.dirs(name)
	f.all[name] = &file{mode: 0o644, at: time.Now()}
}
