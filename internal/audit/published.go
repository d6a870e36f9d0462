package audit

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"iter"

	"golang.org/x/mod/sumdb/tlog"
)

// A Checkpoint is a signed note and the tree that it describes. Who signed it
// is for OpenCheckpoint to check.
type Checkpoint struct {
	Note []byte
	Tree tlog.Tree
}

// A checkpoint file has records that are only ever appended: a checkpoint, as it
// is, and a line that ends it. A record that a crash cut off is ended by
// another line when the file is next opened, and does not count.
const (
	recordEnd = "---\n"
	tornEnd   = "\n--- torn\n"
)

// PublishedRecord returns a checkpoint as a record of a checkpoint file.
func PublishedRecord(checkpoint []byte) []byte {
	return append(bytes.Clone(checkpoint), recordEnd...)
}

// MendPublished returns what must be appended to a checkpoint file that ends
// with tail before a record may be: nothing if tail is whole.
func MendPublished(tail []byte) []byte {
	if len(tail) == 0 || bytes.HasSuffix(tail, []byte("\n"+recordEnd)) || bytes.HasSuffix(tail, []byte(tornEnd)) {
		return nil
	}
	return []byte(tornEnd)
}

// Published returns the checkpoints of a checkpoint file, oldest first. What
// can't be a record, a size that falls, and two trees of one size are an error,
// and then there is nothing more. Published leaves out what was torn by a crash,
// or is still being written.
func Published(r io.Reader) iter.Seq2[Checkpoint, error] {
	return func(yield func(Checkpoint, error) bool) {
		in := bufio.NewReaderSize(r, maxCheckpoint)
		var note []byte
		var last Checkpoint
		for n := 1; ; {
			text, err := in.ReadSlice('\n')
			if err == io.EOF {
				return
			}
			if err == nil && len(note)+len(text) > 2*maxCheckpoint {
				err = errors.New("a record is too long")
			}
			if err != nil {
				yield(Checkpoint{}, fmt.Errorf("read checkpoint file: record %d: %w", n, err))
				return
			}
			switch {
			case string(text) == recordEnd:
				c := Checkpoint{Note: note}
				if c.Tree, err = ParseCheckpoint(note); err == nil && last.Note != nil {
					if c.Tree.N < last.Tree.N {
						err = fmt.Errorf("the log shrank from %d to %d events", last.Tree.N, c.Tree.N)
					} else if c.Tree.N == last.Tree.N && c.Tree.Hash != last.Tree.Hash {
						err = fmt.Errorf("there are two logs of %d events", c.Tree.N)
					}
				}
				if err != nil {
					yield(Checkpoint{}, fmt.Errorf("checkpoint file: record %d: %w", n, err))
					return
				}
				if !yield(c, nil) {
					return
				}
				note, last = nil, c
				n++
			case string(text) == tornEnd[1:]:
				note = nil
			default:
				note = append(note, text...)
			}
		}
	}
}
