package session

import "time"

// A Delivery is owed to the URL of a session that has ended. Many wait at a time,
// so it has nothing of the session but its name.
type Delivery struct {
	ID       int64
	Session  Name
	URL      string    // the session's WebhookURL
	Attempts int       // that failed
	Next     time.Time // when to try again; zero is at once
}
