package audit

import (
	"regexp"
	"testing"
)

// Every sequence of up to six events is judged by CheckOrder and Complete and,
// letter by letter, by regular expressions written from the specification.
func TestOrderIsThatOfTheSpecification(t *testing.T) {
	types := map[byte]Type{
		'c': SessionCreated, 's': SandboxStarted, 'a': EgressAllowed, 'd': EgressDenied, 'l': LimitExceeded,
		'r': ResultCollected, 'x': WorkloadExited, 'u': UsageMetered, 't': SessionTornDown, '?': "novel",
	}
	begun := regexp.MustCompile(`^(c(s[ad]*)?(l|l?r(x(ut?)?)?)?)?$`)
	done := regexp.MustCompile(`^c(s[ad]*)?l?rxut?$`)
	letters := "csadlrxut?"
	good, complete := 0, 0
	var try func(prefix string, depth int)
	try = func(prefix string, depth int) {
		events := make([]Event, len(prefix))
		for i := range events {
			events[i].Type = types[prefix[i]]
		}
		err := CheckOrder(events)
		if want := begun.MatchString(prefix); (err == nil) != want {
			t.Fatalf("%q: %v, want in order %v", prefix, err, want)
		}
		if err == nil {
			good++
			c, why := Complete(events)
			if want := done.MatchString(prefix); c != want {
				t.Fatalf("%q: complete is %v (%s), want %v", prefix, c, why, want)
			}
			if c {
				complete++
			}
		}
		if depth == 0 {
			return
		}
		for i := range len(letters) {
			try(prefix+letters[i:i+1], depth-1)
		}
	}
	try("", 6)
	if good < 50 || complete < 4 {
		t.Errorf("only %d sequences were in order and %d complete", good, complete)
	}
	for _, s := range []string{"csrxut", "csddadadlrxut", "csddadadrxu", "clrxut"} {
		events := make([]Event, len(s))
		for i := range events {
			events[i].Type = types[s[i]]
		}
		if err := CheckOrder(events); err != nil {
			t.Errorf("%s: %v", s, err)
		}
	}
}
