package store

import (
	"context"
	"fmt"
	"time"

	"github.com/enclave-run/enclave/internal/session"
)

// meter and meterInto, around a condition that selects usage_metered events,
// add what those say to the usage of their day. There is one statement for the
// end of a session and for all that ended before there was a table, so that usage
// is what the record says by construction. A number that is none, or that no
// machine can have used, counts as the nearest that one can: an end is not refused
// for it.
const (
	meter = `INSERT INTO usage (org, day, sessions, cpu, wall, peak_memory, bytes_in, bytes_out, output_bytes)
	SELECT s.org, e.time - ((e.time % 86400000000) + 86400000000) % 86400000000, count(*),
		sum(min(max(CAST(round(coalesce(e.data ->> 'cpuSeconds', 0) * 1e6) AS INTEGER), 0), 1 << 50)),
		sum(min(max(CAST(round(coalesce(e.data ->> 'wallSeconds', 0) * 1e6) AS INTEGER), 0), 1 << 50)),
		max(max(coalesce(e.data ->> 'peakMemoryBytes', 0), 0)),
		sum(min(max(coalesce(e.data ->> 'bytesIn', 0), 0), 1 << 50)),
		sum(min(max(coalesce(e.data ->> 'bytesOut', 0), 0), 1 << 50)),
		sum(min(max(coalesce(e.data ->> 'outputBytes', 0), 0), 1 << 50))
	FROM events e JOIN sessions s ON s.n = e.session`
	meterInto = ` GROUP BY 1, 2
	ON CONFLICT (org, day) DO UPDATE SET sessions = sessions + excluded.sessions,
		cpu = cpu + excluded.cpu, wall = wall + excluded.wall, peak_memory = max(peak_memory, excluded.peak_memory),
		bytes_in = bytes_in + excluded.bytes_in, bytes_out = bytes_out + excluded.bytes_out,
		output_bytes = output_bytes + excluded.output_bytes`
)

// ended adds to the transaction that ends n, which has its events already, what
// follows from the end.
func ended(ctx context.Context, t *tx, row int64, n session.Session) error {
	if _, err := t.exec(ctx, meter+" WHERE e.session = ? AND e.type = 'usage_metered'"+meterInto, row); err != nil {
		return fmt.Errorf("meter: %w", err)
	}
	if n.WebhookURL == "" {
		return nil
	}
	if _, err := t.exec(ctx, "INSERT INTO deliveries (session) VALUES (?)", row); err != nil {
		return fmt.Errorf("owe a delivery: %w", err)
	}
	return nil
}

// Usage returns what org used, by day.
func (s *Store) Usage(ctx context.Context, org string, from, to time.Time) ([]session.Usage, error) {
	rows, err := s.reads.QueryContext(ctx, `SELECT day, sessions, cpu, wall, peak_memory, bytes_in, bytes_out, output_bytes
		FROM usage WHERE org = ? AND day >= ? AND day < ? ORDER BY day`, org, ceilMicro(from), ceilMicro(to))
	if err != nil {
		return nil, fmt.Errorf("read usage: %w", err)
	}
	defer rows.Close()
	var out []session.Usage
	for rows.Next() {
		u := session.Usage{Org: org}
		var day, cpu, wall int64
		if err := rows.Scan(&day, &u.Sessions, &cpu, &wall, &u.PeakMemoryBytes, &u.BytesIn, &u.BytesOut, &u.OutputBytes); err != nil {
			return nil, fmt.Errorf("read usage: %w", err)
		}
		u.Day = time.UnixMicro(day).UTC()
		u.CPUSeconds, u.WallSeconds = float64(cpu)/1e6, float64(wall)/1e6
		out = append(out, u)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read usage: %w", err)
	}
	return out, nil
}

// ceilMicro is the first whole microsecond that is not before t.
func ceilMicro(t time.Time) int64 { return t.Add(time.Microsecond - 1).UnixMicro() }
