package audit

import (
	"encoding/json"
	"testing"
)

func TestUnknownIsAListOfNames(t *testing.T) {
	for want, u := range map[string]Unknown{
		`{"unknown":[]}`: NothingUnknown,
		`{"unknown":["attempts","repeats","bytes"]}`: UnknownBytes | UnknownAttempts | UnknownRepeats,
		`{"unknown":["bytes"]}`:                      UnknownBytes,
		`{}`:                                         0,
	} {
		b, err := json.Marshal(Data{Unknown: u})
		if err != nil || string(b) != want {
			t.Errorf("%d is %s, %v, want %s", u, b, err, want)
		}
		var d Data
		if err := json.Unmarshal(b, &d); err != nil || d.Unknown != u {
			t.Errorf("%s is %d, %v, want %d", b, d.Unknown, err, u)
		}
	}
	for _, bad := range []string{`["packets"]`, `["bytes","bytes"]`, `"bytes"`, `[1]`} {
		var u Unknown
		if err := json.Unmarshal([]byte(bad), &u); err == nil {
			t.Errorf("%s is taken", bad)
		}
	}
}

func TestARecordHasResumesWhereTheSandboxLived(t *testing.T) {
	record := func(types ...Type) (events []Event) {
		for _, t := range types {
			events = append(events, Event{Session: "s-1", Type: t})
		}
		return events
	}
	if err := CheckOrder(record(SessionCreated, SandboxStarted, SessionResumed, EgressDenied, SessionResumed, SessionResumed, LimitExceeded, ResultCollected)); err != nil {
		t.Error(err)
	}
	for _, bad := range [][]Event{
		record(SessionCreated, SessionResumed),
		record(SessionCreated, SandboxStarted, LimitExceeded, SessionResumed),
		record(SessionCreated, SandboxStarted, ResultCollected, SessionResumed),
	} {
		if CheckOrder(bad) == nil {
			t.Errorf("%v is in order", bad)
		}
	}
}
