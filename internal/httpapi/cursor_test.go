package httpapi

import (
	"math/big"
	"regexp"
	"testing"

	"github.com/enclave-run/enclave/internal/control"
)

func TestZeroCursorIsTheBeginning(t *testing.T) {
	if got := formatCursor(control.Cursor{}); got != "p0.o0.e0.a0.r0" {
		t.Errorf("%q", got)
	}
	c, err := parseCursor("p3.o123.e4.a5.r1")
	if want := (control.Cursor{Phases: 3, Stdout: 123, Stderr: 4, Audit: 5, Result: true}); err != nil || c != want {
		t.Errorf("%+v, %v", c, err)
	}
}

// The oracle is a pattern and big numbers, neither of which the parser uses.
func FuzzParseCursor(f *testing.F) {
	for _, s := range []string{
		"p0.o0.e0.a0.r0", "p1.o123.e0.a4.r1", "p01.o0.e0.a0.r0", "p1.o0.e0.a0.r2", "p-1.o0.e0.a0.r0", "p1.o+1.e0.a0.r0",
		"p2147483647.o9223372036854775807.e9223372036854775807.a18446744073709551615.r1", "p2147483648.o0.e0.a0.r0",
		"p0.o9223372036854775808.e0.a0.r0", "p0.o0.e0.a18446744073709551616.r0", "p0.o0.e0.a0", "p0.o0.e0.a0.r0.x0", "", "p.o.e.a.r", "p0.o0.e0.a1_0.r0", "p0.o0.e0.a0.r0\n",
	} {
		f.Add(s)
	}
	form := regexp.MustCompile(`\Ap(0|[1-9][0-9]*)\.o(0|[1-9][0-9]*)\.e(0|[1-9][0-9]*)\.a(0|[1-9][0-9]*)\.r([01])\z`)
	most := []string{"2147483647", "9223372036854775807", "9223372036854775807", "18446744073709551615", "1"}
	f.Fuzz(func(t *testing.T, s string) {
		c, err := parseCursor(s)
		m := form.FindStringSubmatch(s)
		legal := m != nil
		for i := range most {
			if !legal {
				break
			}
			n, _ := new(big.Int).SetString(m[i+1], 10)
			limit, _ := new(big.Int).SetString(most[i], 10)
			legal = n.Cmp(limit) <= 0
		}
		if (err == nil) != legal {
			t.Fatalf("parseCursor(%q) = %+v, %v; legal: %v", s, c, err, legal)
		}
		if legal && formatCursor(c) != s {
			t.Fatalf("parseCursor(%q) = %+v", s, c)
		}
	})
}
