package enclave

import (
	"context"
	"fmt"
	"net/url"
	"time"
)

// Usage is what the organisation's sessions that ended on one day used, by the
// counters of the host.
type Usage struct {
	Day             string  `json:"day"` // "2026-01-31", in UTC
	Sessions        int64   `json:"sessions"`
	CPUSeconds      float64 `json:"cpuSeconds"`
	WallSeconds     float64 `json:"wallSeconds"`     // from start to end, of each
	PeakMemoryBytes int64   `json:"peakMemoryBytes"` // the greatest of any session
	BytesIn         int64   `json:"bytesIn"`         // through the gateway
	BytesOut        int64   `json:"bytesOut"`
	OutputBytes     int64   `json:"outputBytes"` // stdout and stderr
}

// UsageOptions say of which days Client.Usage tells. Only the day of a time
// counts, in UTC.
type UsageOptions struct {
	From time.Time // the first; zero is 30 days before To
	To   time.Time // the first that is left out; zero is tomorrow. At most 366 days after From
}

// Usage returns what the caller's organisation used, by day, oldest first. Days on
// which no session ended are left out.
func (c *Client) Usage(ctx context.Context, o UsageOptions) ([]Usage, error) {
	q := url.Values{}
	if !o.From.IsZero() {
		q.Set("from", o.From.UTC().Format(time.DateOnly))
	}
	if !o.To.IsZero() {
		q.Set("to", o.To.UTC().Format(time.DateOnly))
	}
	path := "/v1/usage"
	if len(q) > 0 {
		path += "?" + q.Encode()
	}
	var p Page[Usage]
	if err := c.do(ctx, "GET", path, nil, &p); err != nil {
		return nil, fmt.Errorf("get usage: %w", err)
	}
	return p.Items, nil
}
