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

// A UsageReport is what an organisation's sessions used, by day, and what it may
// have.
type UsageReport struct {
	Items   []Usage `json:"items"` // oldest first; a day on which no session ended is left out
	Storage Storage `json:"storage"`
	Quotas  Quotas  `json:"quotas"`
}

// Storage is what the server keeps of an organisation, in bytes. A session that
// might store more than is left is refused at its creation, as quota_exceeded.
type Storage struct {
	UsedBytes     int64 `json:"usedBytes"`
	ReservedBytes int64 `json:"reservedBytes"` // that sessions which have not ended may still store
	LimitBytes    int64 `json:"limitBytes"`    // 0 is no limit
	Requests      int64 `json:"requests"`      // of UsedBytes: code and files
	Results       int64 `json:"results"`       // what code gave enclave.result
	Output        int64 `json:"output"`        // stdout and stderr
	Records       int64 `json:"records"`       // sessions and their events, which are never dropped
	Blobs         int64 `json:"blobs"`
	Snapshots     int64 `json:"snapshots"`
}

// Quotas are what an organisation may ask for. 0 is no limit.
type Quotas struct {
	Concurrent       int     `json:"concurrent"` // sessions that run at once
	PerMinute        int     `json:"perMinute"`  // sessions created in a minute
	Waiting          int     `json:"waiting"`    // sessions that wait for their turn
	CPUSecondsPerDay int64   `json:"cpuSecondsPerDay"`
	CPUSecondsToday  float64 `json:"cpuSecondsToday"` // used by sessions that ended today, in UTC
}

// UsageOptions say of which days Client.Usage tells. Only the day of a time
// counts, in UTC.
type UsageOptions struct {
	From time.Time // the first; zero is 30 days before To
	To   time.Time // the first that is left out; zero is tomorrow. At most 366 days after From
}

// Usage returns what the caller's organisation used, by day, and what it may have.
func (c *Client) Usage(ctx context.Context, o UsageOptions) (UsageReport, error) {
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
	var r UsageReport
	if err := c.do(ctx, "GET", path, nil, &r); err != nil {
		return UsageReport{}, fmt.Errorf("get usage: %w", err)
	}
	return r, nil
}
