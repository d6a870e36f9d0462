package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The report has what its readers compare: null where there is no counterpart,
// else a ratio that is value / against; and nothing of what was not measured.
func TestReportHasValuesAndRatios(t *testing.T) {
	dir := t.TempDir()
	var out, progress bytes.Buffer
	err := take(t.Context(), Config{Out: &out, Err: &progress, Evidence: dir}, []measure{
		{"alone", func(context.Context, Config) ([]Result, error) { return []Result{alone("alone", 25, "MB", "")}, nil }},
		{"compared", func(context.Context, Config) ([]Result, error) {
			return []Result{compared("compared", 150, 100, "ms", "why")}, nil
		}},
		{"absent", func(context.Context, Config) ([]Result, error) { return nil, skip("there is none here") }},
	})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(dir, "bench.json"))
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(raw, &got); err != nil {
		t.Fatal(err)
	}
	want := `[{"against":null,"name":"alone","ratio":null,"unit":"MB","value":25},{"against":100,"name":"compared","ratio":1.5,"unit":"ms","value":150}]`
	if b, _ := json.Marshal(got["results"]); string(b) != want {
		t.Errorf("results are %s, want %s", b, want)
	}
	if m, _ := got["machine"].(string); !strings.Contains(m, "Linux") {
		t.Errorf("the machine is described as %q", m)
	}
	if !strings.Contains(out.String(), "not run: there is none here") {
		t.Errorf("what was not run is not said:\n%s", &out)
	}
}

func TestAFailedMeasurementWritesNoReport(t *testing.T) {
	dir := t.TempDir()
	broken := errors.New("broken")
	err := take(t.Context(), Config{Out: &bytes.Buffer{}, Err: &bytes.Buffer{}, Evidence: dir}, []measure{
		{"broken", func(context.Context, Config) ([]Result, error) { return nil, broken }},
	})
	if !errors.Is(err, broken) {
		t.Errorf("error is %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "bench.json")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a report was written: %v", err)
	}
}

// A comparison takes both sides in turn, so that a machine that slows down
// slows both, and does not count the first of either.
func TestPairsAreTakenInTurn(t *testing.T) {
	var order strings.Builder
	as, bs, err := pair(3, func() error { order.WriteByte('a'); return nil }, func() error { order.WriteByte('b'); return nil })
	if err != nil || order.String() != "abababab" || len(as) != 3 || len(bs) != 3 {
		t.Errorf("order %s, %d and %d counted, error %v", &order, len(as), len(bs), err)
	}
	if m := median([]time.Duration{9 * time.Millisecond, time.Millisecond, 2 * time.Millisecond}); m != 2 {
		t.Errorf("median is %v ms", m)
	}
}

func TestMemoryOfAProcessIsRead(t *testing.T) {
	n, err := pss([]int{os.Getpid()})
	if err != nil || n < 1<<20 {
		t.Errorf("this process has %d bytes, error %v", n, err)
	}
	if n, err := pss([]int{1 << 30}); err != nil || n != 0 {
		t.Errorf("a process that is gone has %d bytes, error %v", n, err)
	}
}
