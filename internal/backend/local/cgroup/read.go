package cgroup

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// A CPUReader reads a group's CPU time again and again without opening its file
// each time. After the group has been removed it returns an error.
type CPUReader struct {
	file *os.File
	v1   bool
	buf  [1024]byte
}

// CPUReader opens the group's CPU counter.
func (g *Group) CPUReader() (*CPUReader, error) {
	r := &CPUReader{v1: g.isV1("cpuacct")}
	name := "cpu.stat"
	if r.v1 {
		name = "cpuacct.usage"
	}
	var err error
	if r.file, err = os.Open(filepath.Join(g.dir("cpuacct"), name)); err != nil {
		return nil, fmt.Errorf("read cgroup: %w", err)
	}
	return r, nil
}

// Read is the CPU time used so far.
func (r *CPUReader) Read() (time.Duration, error) {
	n, err := r.file.ReadAt(r.buf[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, fmt.Errorf("read cgroup: %w", err)
	}
	if r.v1 {
		ns, err := parse("cpuacct.usage", r.buf[:n])
		return time.Duration(ns), err
	}
	us, err := lookup("cpu.stat", r.buf[:n], "usage_usec")
	return time.Duration(us) * time.Microsecond, err
}

// Close closes the counter's file.
func (r *CPUReader) Close() error { return r.file.Close() }
