package httpapi

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/enclave-run/enclave/internal/control"
)

// formatCursor returns the id of the event of a stream after which c is what
// the client has: "p1.o123.e0.a4.r0".
func formatCursor(c control.Cursor) string {
	r := 0
	if c.Result {
		r = 1
	}
	return fmt.Sprintf("p%d.o%d.e%d.a%d.r%d", c.Phases, c.Stdout, c.Stderr, c.Audit, r)
}

// parseCursor is the inverse of formatCursor, and accepts nothing else.
func parseCursor(id string) (control.Cursor, error) {
	const most = 5*(1+20) + 4 // five letters and numbers of 64 bits, four points
	parts := strings.Split(id, ".")
	if len(id) > most || len(parts) != 5 {
		return control.Cursor{}, errCursor()
	}
	var n [5]uint64
	for i, bits := range [5]int{31, 63, 63, 64, 1} { // what the fields of a Cursor hold
		if len(parts[i]) < 2 {
			return control.Cursor{}, errCursor()
		}
		v, err := strconv.ParseUint(parts[i][1:], 10, bits)
		if err != nil {
			return control.Cursor{}, errCursor()
		}
		n[i] = v
	}
	c := control.Cursor{Phases: int(n[0]), Stdout: int64(n[1]), Stderr: int64(n[2]), Audit: n[3], Result: n[4] == 1}
	if formatCursor(c) != id { // other letters, or a leading zero
		return control.Cursor{}, errCursor()
	}
	return c, nil
}

func errCursor() error {
	return refuse("invalid_request", "Last-Event-ID", "is not the id of an event of this stream")
}
