package ui

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/enclave-run/enclave"
)

func TestASessionThatWaitsIsToldItsTurn(t *testing.T) {
	items := func(ids ...string) enclave.OwnQueue {
		q := enclave.OwnQueue{Waiting: len(ids)}
		for i, id := range ids {
			q.Items = append(q.Items, enclave.QueuedSession{ID: id, Position: i + 1})
		}
		return q
	}
	poor := items("me")
	poor.Items[0].WaitsFor = "disk"
	far := items("a", "b")
	far.Waiting = 200
	for name, tc := range map[string]struct {
		yours enclave.OwnQueue
		want  string
	}{
		"it is second":                 {items("a", "me"), "waiting: position 2 of 2 (3 of 4 run)"},
		"it is next":                   {items("me", "a"), "waiting: position 1 of 2 (3 of 4 run)"},
		"it is behind those named":     {far, "waiting: behind more than 2 (3 of 4 run)"},
		"the machine has no room":      {poor, "waiting for disk space of the server's machine: position 1 of 1 (3 of 4 run)"},
		"it waits no more":             {items("a", "b"), ""},
		"nobody of its organisation":   {items(), ""},
		"its name is another's ending": {items("some"), ""},
	} {
		if got := turnOf(enclave.Queue{Running: 3, MaxRunning: 4, Yours: tc.yours}, "me"); got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}

// The line is said when it changes and not again, and not after stop.
func TestTheTurnIsSaidOnceForEachChange(t *testing.T) {
	answers := []string{
		`{"running":1,"maxRunning":1,"waiting":2,"yours":{"running":1,"waiting":2,"concurrent":1,"items":[{"id":"s-00aa11-1","position":1,"waitingMs":1},{"id":"s-00aa11-2","position":2,"waitingMs":1}]}}`,
		`{"running":1,"maxRunning":1,"waiting":1,"yours":{"running":1,"waiting":1,"concurrent":1,"items":[{"id":"s-00aa11-2","position":1,"waitingMs":1}]}}`,
		`{"running":1,"maxRunning":1,"waiting":0,"yours":{"running":1,"waiting":0,"concurrent":1,"items":[]}}`,
	}
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		serve := roundTrip(func(*http.Request) *http.Response {
			w := httptest.NewRecorder()
			_, _ = w.WriteString(answers[min(asked/2, len(answers)-1)])
			asked++
			return w.Result()
		})
		var out bytes.Buffer
		stop := SayTurn(t.Context(), &out, &enclave.Client{BaseURL: "http://127.0.0.1", APIKey: "ek_x", HTTPClient: &http.Client{Transport: serve}}, "s-00aa11-2")
		time.Sleep(waitingLog + 20*waitingEvery)
		stop()
		want := "waiting: position 2 of 2 (1 of 1 run)\nwaiting: position 1 of 1 (1 of 1 run)\n"
		if got := out.String(); got != want || asked != 21 {
			t.Errorf("after asking %d times it says %q, want %q", asked, got, want)
		}
		time.Sleep(time.Hour)
		if asked != 21 {
			t.Errorf("after its end it asked %d times more", asked-21)
		}
	})
}

// A roundTrip answers requests without a network, so that fake time goes on.
type roundTrip func(*http.Request) *http.Response

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r), nil }
