package httpapi

import (
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/enclave-run/enclave"
)

// A client's times reach the plane as the days, in UTC, that they are in; what it
// does not say is left to the plane.
func TestUsageIsAskedForByDay(t *testing.T) {
	r := newRig(t)
	c := r.client("VIEWER")
	east := time.FixedZone("east", 9*3600)
	day := func(d int) time.Time { return time.Date(2026, 9, d, 0, 0, 0, 0, time.UTC) }
	for _, tc := range []struct {
		ask  enclave.UsageOptions
		want []time.Time
	}{
		{enclave.UsageOptions{}, []time.Time{{}, {}}},
		{enclave.UsageOptions{From: day(3)}, []time.Time{day(3), {}}},
		{enclave.UsageOptions{To: day(3).Add(-time.Nanosecond)}, []time.Time{{}, day(2)}},
		{enclave.UsageOptions{From: time.Date(2026, 9, 1, 8, 0, 0, 0, east), To: time.Date(2026, 9, 1, 9, 0, 0, 0, east)}, []time.Time{day(0), day(1)}},
	} {
		r.plane.change(func() { r.plane.days = nil })
		got, err := c.Usage(t.Context(), tc.ask)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff([]enclave.Usage{{Day: "2026-09-01", Sessions: 3, CPUSeconds: 0.25, BytesOut: 7}}, got.Items); d != "" {
			t.Error(d)
		}
		if d := cmp.Diff(tc.want, r.plane.days); d != "" {
			t.Errorf("%+v: %s", tc.ask, d)
		}
	}
}

// The result of a session whose retention is over is gone, for ever; the session
// is not.
func TestExpiredResultIsGone(t *testing.T) {
	r := newRig(t)
	const id = "s-0a1b2c-7"
	r.plane.change(func() { r.plane.expired = map[string]bool{id: true} })
	c := r.client("VIEWER")
	_, err := c.Result(t.Context(), id)
	var p *enclave.Error
	if !errors.Is(err, enclave.ErrExpired) || !errors.As(err, &p) || p.Status != http.StatusGone {
		t.Errorf("its result: %v", err)
	}
	s, err := c.Get(t.Context(), id)
	if err != nil || s.Outcome != enclave.Succeeded || s.Result != nil {
		t.Errorf("the session: %+v, %v", s, err)
	}
	if _, err := r.client("OTHER").Result(t.Context(), id); !errors.Is(err, enclave.ErrNotFound) {
		t.Errorf("another organisation is told of it: %v", err)
	}
}
