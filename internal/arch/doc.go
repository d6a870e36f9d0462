// Package arch holds the project's shape as a test: which package may import
// which, how long a file may be, which names no package has. It parses the
// sources in process; a version that ran the go command was cached as passing
// by go test, which does not see what a child process reads.
package arch
