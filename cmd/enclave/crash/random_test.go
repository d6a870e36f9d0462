package crash

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"
)

// crashTime bounds the long tier.
func crashTime(t testing.TB) time.Duration {
	d, err := time.ParseDuration(cmp.Or(os.Getenv("CRASHTIME"), "45m"))
	if err != nil {
		t.Fatalf("CRASHTIME: %v", err)
	}
	return d
}

// Programs do not choose where they die: kills at random moments, from the first
// instruction on, under load.
func TestKillsAtRandomMomentsLoseNothingAndLeaveNothing(t *testing.T) {
	end := time.Now().Add(crashTime(t) * 2 / 3)
	// On a real kernel a session takes longer, and so does what can be cut short.
	for backend, kills := range map[string]struct {
		few, many int
		within    time.Duration
	}{
		"simulator": {20, 950, 400 * time.Millisecond},
		"gvisor":    {3, 50, 2500 * time.Millisecond},
		"docker":    {3, 30, 2500 * time.Millisecond},
		"qemu":      {0, 20, 8 * time.Second},
	} {
		n := kills.few
		if full() {
			n = kills.many
		}
		if n == 0 {
			continue
		}
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			seed := rand.Uint64()
			random := rand.New(rand.NewPCG(seed, 0))
			s, j := newSite(t, backend), newJournal()
			ready, done := 0, 0
			for ; done < n && time.Now().Before(end); done++ {
				s.fuse = 1 + time.Duration(random.Int64N(int64(kills.within)))
				v := s.start("")
				if v.serves() {
					ready++
				}
				load(v, j, done)
				<-v.ended
				if !v.killed() {
					t.Fatalf("seed %d, run %d: the server ended with %v: %s", seed, done, v.err, v.words())
				}
			}
			s.fuse = 0
			t.Logf("seed %d: %d kills, %d of them of a server that served; %d sessions, %d answers kept", seed, done, ready, len(j.ids()), j.acks)
			if ready == 0 || len(j.ids()) == 0 {
				t.Errorf("no kill hit a server that had acknowledged anything")
			}
			s.recovers(j)
		})
	}
}

// load drives the server until it is gone.
func load(v *server, j *journal, n int) {
	ctx, cancel := v.within()
	defer cancel()
	var workers sync.WaitGroup
	for w := range 3 {
		workers.Go(func() {
			d := driver{j, v.client, ctx}
			for i := 0; i < 3 && v.serves(); i++ {
				kind := []string{quick, loud, leaky}[(w+i+n)%3]
				key := ""
				if i == 0 {
					key = fmt.Sprintf("key-%d-%d", n, w)
				}
				id := d.run(kind, key)
				if w == i {
					d.tearDown(id)
					continue
				}
				d.follow(id, toEnd)
				d.look(id)
			}
			if note, err := d.c.Checkpoint(ctx); err == nil && w == 0 {
				d.checkpoint(note)
			}
		})
	}
	workers.Wait()
}
