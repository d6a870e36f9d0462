package session

import "time"

// A Delivery is owed to the WebhookURL of a session that has ended.
type Delivery struct {
	ID       int64
	Session  Session
	Attempts int       // that failed
	Next     time.Time // when to try again; zero is at once
}
