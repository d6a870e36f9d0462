package audit

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"runtime"
	"slices"
	"strings"
	"sync"

	"golang.org/x/mod/sumdb/tlog"
)

// An exported log is all events of a log in its order, each a line of canonical
// JSON, and one line more, with the checkpoint that signs them. LogLine and
// LogEnd make the lines; VerifyLog checks the whole.

// LogLine returns the line of a sealed event in an exported log.
func LogLine(e Event) ([]byte, error) {
	b, err := json.Marshal(e)
	return append(b, '\n'), err
}

// LogEnd returns the last line of an exported log.
func LogEnd(checkpoint []byte) ([]byte, error) {
	b, err := json.Marshal(logEnd{string(checkpoint)})
	return append(b, '\n'), err
}

type logEnd struct {
	Checkpoint string `json:"checkpoint"`
}

// endPrefix begins the last line, and no line of an event.
const endPrefix = `{"checkpoint":`

// LogOptions adjust VerifyLog. The zero LogOptions check the log against its own
// checkpoint alone.
type LogOptions struct {
	// Progress, if not nil, is told now and then how much was checked.
	Progress func(events, bytes int64)
	// Checkpoints, if not nil, is a checkpoint file: the log must have had each
	// root in it, at its size. Their signatures are not looked at: a root that
	// the log really had needs no signature, and any other is refused.
	Checkpoints io.Reader
}

// A LogReport is what is known of an exported log that verified.
type LogReport struct {
	Origin      string
	Key         string // that signed the checkpoint
	Log         tlog.Tree
	Bytes       int64
	Sessions    int   // with a record
	Open        int   // of those, whose record stops before the end
	Rotations   int   // of the log's key
	Checkpoints int64 // of LogOptions.Checkpoints, all found
}

// maxLine bounds a line of an exported log.
const maxLine = 1 << 20

// VerifyLog checks an exported log against the log's public key, or one that
// took its place in a rotation, and nothing else: that each event is in
// canonical form and follows from the one before it in its record, that the
// types are in order, that the tree of all is the one that the checkpoint
// signs, and that each rotation of the key is signed by both. It keeps a
// few dozen bytes for each session, and nothing of an event.
//
// That the log goes on elsewhere can't be seen from it: compare its checkpoint
// with one that was kept.
func VerifyLog(r io.Reader, publicKey string, o LogOptions) (LogReport, error) {
	v := &logVerifier{records: map[string]state{}, progress: o.Progress}
	if o.Checkpoints != nil {
		next, stop := iter.Pull2(Published(o.Checkpoints))
		defer stop()
		v.published = next
		if err := v.nextPublished(); err != nil {
			return LogReport{}, err
		}
		if err := v.compare(); err != nil { // with those of the empty log
			return LogReport{}, err
		}
	}
	chunks, stop := readChunks(r)
	defer stop()
	for c := range chunks {
		if err := v.take(<-c); err != nil {
			return LogReport{}, err
		}
	}
	return v.finish(publicKey)
}

// A state is what follows from the events of a record so far.
type state struct {
	seq  uint64
	hash [32]byte
	typ  Type
}

// next reports whether l may come after s in its record, and what s becomes. It
// does not look at the hash.
func (s state) next(l *line) (state, error) {
	if l.seq != s.seq+1 {
		return s, fmt.Errorf("event %d of session %s comes after event %d", l.seq, l.session, s.seq)
	}
	if !mayFollow(string(l.session), s.typ, l.typ) {
		if s.typ == "" {
			return s, fmt.Errorf("the record of session %s begins with %q", l.session, l.typ)
		}
		return s, fmt.Errorf("event %d of session %s is %q, which can't follow %q", l.seq, l.session, l.typ, s.typ)
	}
	return state{l.seq, l.hash, l.typ}, nil
}

// A chunk is some lines, checked as far as that is possible without those
// before them.
type chunk struct {
	leaves    []tlog.Hash
	heads     []head // the first event of each record in the chunk, in order
	rotations []placed
	end       []byte // the last line of the log, if it is in the chunk
	bytes     int64
	err       error // of the line behind the leaves
}

// A head is the first event of a record in a chunk, and what the record has
// become at the end of the chunk.
type head struct {
	at   int // which line of the chunk
	line line
	tail state
}

type placed struct {
	at   int
	data Data
}

var errEnd = errors.New("there is something behind the checkpoint")

// checkLines checks the lines of data, the last with its newline.
func checkLines(data []byte) (c chunk) {
	c.bytes = int64(len(data))
	heads := map[string]int{} // session → its head
	var scratch []byte
	for at := 0; len(data) > 0; at++ {
		text, rest, ok := bytes.Cut(data, []byte("\n"))
		if data = rest; !ok {
			c.err = errors.New("the last line has no end: the rest was cut off")
			return c
		}
		if c.end != nil {
			c.err = errEnd
			return c
		}
		if bytes.HasPrefix(text, []byte(endPrefix)) {
			c.end = text
			continue
		}
		l, err := parseLine(text)
		if err != nil {
			c.err = err
			return c
		}
		i, known := heads[string(l.session)]
		if !known {
			heads[string(l.session)] = len(c.heads)
			c.heads = append(c.heads, head{at, l, state{l.seq, l.hash, l.typ}})
		} else {
			tail := c.heads[i].tail
			var h [32]byte
			if h, scratch = l.digest(tail.hash, scratch); h != l.hash {
				c.err = fmt.Errorf("event %d of session %s does not follow from event %d: its hash differs", l.seq, l.session, tail.seq)
				return c
			}
			if c.heads[i].tail, c.err = tail.next(&l); c.err != nil {
				return c
			}
		}
		if l.typ == KeyRotated {
			c.rotations = append(c.rotations, placed{at, *l.data})
		}
		var leaf tlog.Hash
		leaf, scratch = l.leaf(scratch)
		c.leaves = append(c.leaves, leaf)
	}
	return c
}

// A logVerifier puts checked chunks together.
type logVerifier struct {
	tree      frontier
	records   map[string]state
	keys      keyChain
	end       []byte
	bytes     int64
	scratch   []byte
	progress  func(events, bytes int64)
	published func() (Checkpoint, error, bool)
	awaited   *Checkpoint // of the checkpoint file, the next to be found
	found     int64
}

// take adds c, and reports the first thing wrong with the log up to its end.
func (v *logVerifier) take(c chunk) error {
	first := v.tree.n
	if v.end != nil {
		return errEnd
	}
	if err := v.join(c, first); err != nil {
		return err
	}
	for _, leaf := range c.leaves {
		v.tree.add(leaf)
		if v.awaited != nil {
			if err := v.compare(); err != nil {
				return err
			}
		}
	}
	if c.err != nil {
		return fmt.Errorf("line %d: %w", v.tree.n+1, c.err)
	}
	v.bytes += c.bytes
	v.end = c.end
	if v.progress != nil {
		v.progress(v.tree.n, v.bytes)
	}
	return nil
}

// join checks the heads and rotations of c against what came before.
func (v *logVerifier) join(c chunk, first int64) error {
	for i := range c.heads {
		h := &c.heads[i]
		prev := v.records[string(h.line.session)]
		if _, err := prev.next(&h.line); err != nil {
			return fmt.Errorf("line %d: %w", first+int64(h.at)+1, err)
		}
		var sum [32]byte
		if sum, v.scratch = h.line.digest(prev.hash, v.scratch); sum != h.line.hash {
			return fmt.Errorf("line %d: event %d of session %s does not follow from event %d: its hash differs", first+int64(h.at)+1, h.line.seq, h.line.session, prev.seq)
		}
		v.records[string(h.line.session)] = h.tail
	}
	for _, r := range c.rotations {
		if err := v.keys.add(r.data, first+int64(r.at)); err != nil {
			return fmt.Errorf("line %d: %w", first+int64(r.at)+1, err)
		}
	}
	return nil
}

// compare compares the tree with the checkpoints of its size.
func (v *logVerifier) compare() error {
	for v.awaited != nil && v.awaited.Tree.N == v.tree.n {
		if v.tree.root() != v.awaited.Tree.Hash {
			return fmt.Errorf("a checkpoint of %d events was published that is not of this log: one was forked or rewritten", v.tree.n)
		}
		v.found++
		if err := v.nextPublished(); err != nil {
			return err
		}
	}
	return nil
}

func (v *logVerifier) nextPublished() error {
	c, err, ok := v.published()
	v.awaited = &c
	if !ok {
		v.awaited = nil
	}
	return err
}

// finish compares all that was taken with the checkpoint.
func (v *logVerifier) finish(public string) (LogReport, error) {
	if v.end == nil {
		return LogReport{}, fmt.Errorf("the log stops after %d events without a checkpoint: the rest was cut off", v.tree.n)
	}
	var end logEnd
	if err := Strict(v.end, &end); err != nil {
		return LogReport{}, fmt.Errorf("the last line: %w", err)
	}
	if again, err := LogEnd([]byte(end.Checkpoint)); err != nil || string(again) != string(v.end)+"\n" {
		return LogReport{}, errors.New("the last line is not in canonical form")
	}
	if len(v.keys.keys) == 0 {
		v.keys.keys = []string{public}
	}
	if !slices.Contains(v.keys.keys, public) {
		return LogReport{}, errors.New("the log's rotations neither begin with the public key nor come to it: this is another log, or another key")
	}
	tree, err := OpenCheckpoint([]byte(end.Checkpoint), v.keys.current())
	if err != nil {
		return LogReport{}, err
	}
	if tree.N != v.tree.n {
		return LogReport{}, fmt.Errorf("there are %d events, the checkpoint is of %d", v.tree.n, tree.N)
	}
	if tree.Hash != v.tree.root() {
		return LogReport{}, errors.New("the events are not those that the checkpoint signs")
	}
	if v.awaited != nil {
		return LogReport{}, fmt.Errorf("a checkpoint of %d events was published; this log has only %d: it is older, or was cut", v.awaited.Tree.N, v.tree.n)
	}
	r := LogReport{Key: v.keys.current(), Log: tree, Bytes: v.bytes, Rotations: len(v.keys.at), Checkpoints: v.found}
	r.Origin, _, _ = strings.Cut(end.Checkpoint, "\n")
	for id, s := range v.records {
		if id == LogRecord {
			continue
		}
		r.Sessions++
		if s.typ != UsageMetered && s.typ != SessionTornDown {
			r.Open++
		}
	}
	return r, nil
}

// A frontier is the right edge of a tree that grows: the roots of its complete
// parts, the largest first (RFC 6962, section 2.1).
type frontier struct {
	n      int64
	hashes []tlog.Hash
}

func (f *frontier) add(leaf tlog.Hash) {
	for n := f.n; n&1 == 1; n >>= 1 {
		last := len(f.hashes) - 1
		leaf = tlog.NodeHash(f.hashes[last], leaf)
		f.hashes = f.hashes[:last]
	}
	f.hashes = append(f.hashes, leaf)
	f.n++
}

func (f *frontier) root() tlog.Hash {
	if f.n == 0 {
		h, _ := tlog.TreeHash(0, nil) // of nothing, so nothing is read
		return h
	}
	h := f.hashes[len(f.hashes)-1]
	for i := len(f.hashes) - 2; i >= 0; i-- {
		h = tlog.NodeHash(f.hashes[i], h)
	}
	return h
}

// chunkSize is how much of a log one goroutine checks at a time.
const chunkSize = 256 << 10

// readChunks has the lines of r checked on all processors, and gives them in
// order. stop waits until nothing of r is read any more.
func readChunks(r io.Reader) (_ <-chan chan chunk, stop func()) {
	workers := runtime.GOMAXPROCS(0)
	order := make(chan chan chunk, 2*workers)
	done := make(chan struct{})
	var running sync.WaitGroup
	turns := make(chan struct{}, workers)
	running.Go(func() {
		defer close(order)
		in := bufio.NewReaderSize(r, 64<<10)
		for {
			data, err := readLines(in)
			if len(data) == 0 && err == io.EOF {
				return
			}
			out := make(chan chunk, 1)
			select {
			case order <- out:
			case <-done:
				return
			}
			if err != nil && err != io.EOF {
				out <- chunk{err: fmt.Errorf("read the log: %w", err)}
				return
			}
			turns <- struct{}{}
			running.Go(func() { out <- checkLines(data); <-turns })
			if err == io.EOF {
				return
			}
		}
	})
	return order, func() { close(done); running.Wait() }
}

// readLines reads about chunkSize bytes up to the end of a line.
func readLines(in *bufio.Reader) ([]byte, error) {
	data := make([]byte, chunkSize, chunkSize+4096)
	n, err := io.ReadFull(in, data)
	if err == io.ErrUnexpectedEOF {
		err = io.EOF
	}
	if data = data[:n]; err != nil || data[n-1] == '\n' {
		return data, err
	}
	for len(data) < chunkSize+maxLine {
		rest, err := in.ReadSlice('\n')
		data = append(data, rest...)
		if err != bufio.ErrBufferFull {
			return data, err
		}
	}
	return data, fmt.Errorf("a line has more than %d bytes", maxLine)
}
