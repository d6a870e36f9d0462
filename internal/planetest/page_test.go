package planetest_test

import (
	"fmt"
	"sync"
	"testing"

	"github.com/enclave-run/enclave"
)

// Whoever reads a list page by page sees each session that was there when he
// began once, however many are created meanwhile.
func TestPagesAreStableWhileSessionsAreCreated(t *testing.T) {
	c := client(open(t, t.TempDir()))
	run := func(label string) {
		if _, err := c.Run(t.Context(), enclave.SessionRequest{Code: "pass", Labels: map[string]string{"n": label}}); err != nil {
			t.Error(err)
		}
	}
	const old = 20
	for i := range old {
		run(fmt.Sprint(i))
	}
	var writers sync.WaitGroup
	seen := map[string]int{}
	for o := (enclave.ListOptions{Limit: 3}); ; {
		page, err := c.List(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range page.Items {
			seen[s.Labels["n"]]++
		}
		for i := range 3 {
			writers.Go(func() { run(fmt.Sprintf("%s+%d", page.NextCursor, i)) })
		}
		if o.Cursor = page.NextCursor; o.Cursor == "" {
			break
		}
	}
	writers.Wait()
	for i := range old {
		if n := seen[fmt.Sprint(i)]; n != 1 {
			t.Errorf("session %d was seen %d times", i, n)
		}
	}
	if len(seen) != old {
		t.Errorf("%d sessions were seen that were not there at the start", len(seen)-old)
	}
}
