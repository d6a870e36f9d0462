package session

import "time"

// Usage is what the sessions of an organisation that ended on a day used: the
// sum of the usage_metered events that the record has of that day.
type Usage struct {
	Org               string
	Day               time.Time // its midnight, UTC
	Sessions          int64
	CPUSeconds        float64 // in whole microseconds, as is WallSeconds
	WallSeconds       float64
	PeakMemoryBytes   int64 // the greatest of any session
	BytesIn, BytesOut int64
	OutputBytes       int64
}
