package main

import (
	"fmt"
	"slices"
)

// A Backend is what a soak found of one backend.
type Backend struct {
	Name    string         `json:"backend"`
	Wanted  int            `json:"wanted"` // cycles
	Cycles  int            `json:"cycles"`
	Seconds int64          `json:"seconds"`
	Ends    map[string]int `json:"ends"`  // how the sessions ended
	Wrong   []string       `json:"wrong"` // those that ended otherwise than they should
	Slopes  []Slope        `json:"slopes"`
	Samples []Sample       `json:"samples"`
}

// A Slope is how a resource went over the cycles.
type Slope struct {
	Resource string  `json:"resource"`
	First    int64   `json:"first"`
	Last     int64   `json:"last"`
	Per1000  float64 `json:"per1000Cycles"` // in the resource's unit; memory is in bytes
	Leaks    bool    `json:"leaks"`
}

// judge fills Slopes.
func (b *Backend) judge() {
	b.Slopes = nil
	for _, r := range resources {
		of := b.Samples
		if !r.count {
			of = of[len(of)/3:] // the first third fills caches of a bounded size
		}
		s := Slope{Resource: r.name, First: r.of(of[0]), Last: r.of(of[len(of)-1]), Per1000: 1000 * slope(of, r.of)}
		if r.count {
			s.Leaks = s.Per1000 > 0 && rises(of, r.of)
		} else {
			s.Leaks = grows(of, r.of)
		}
		b.Slopes = append(b.Slopes, s)
	}
}

// slope is the Theil–Sen estimate: the median of the slopes between all pairs of
// samples. One sample that was taken in a bad moment does not move it, and
// what grows steadily, however slowly, does.
func slope(samples []Sample, of func(Sample) int64) float64 {
	var all []float64
	for i, a := range samples {
		for _, b := range samples[i+1:] {
			all = append(all, float64(of(b)-of(a))/float64(b.Cycle-a.Cycle))
		}
	}
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	if n := len(all); n%2 == 0 {
		return (all[n/2-1] + all[n/2]) / 2
	}
	return all[len(all)/2]
}

// rises reports whether a counted resource is, in the last third of the samples,
// always above what it ever was in the first: who opens one and lets go of it
// again holds more of it at times, who leaks holds more of it always.
func rises(samples []Sample, of func(Sample) int64) bool {
	third := (len(samples) + 2) / 3
	if third == len(samples) {
		return false // one sample tells nothing
	}
	most, least := of(samples[0]), of(samples[len(samples)-1])
	for i := range third {
		most = max(most, of(samples[i]))
		least = min(least, of(samples[len(samples)-1-i]))
	}
	return least > most
}

// grows reports whether a measured resource is greater in the later half of the
// samples than in the earlier by more than noise: a twentieth and 2 MiB.
func grows(samples []Sample, of func(Sample) int64) bool {
	half := len(samples) / 2
	if half == 0 {
		return false
	}
	middle := func(s []Sample) int64 {
		var v []int64
		for _, x := range s {
			v = append(v, of(x))
		}
		slices.Sort(v)
		return v[len(v)/2]
	}
	before, after := middle(samples[:half]), middle(samples[half:])
	return after > before+before/20+2<<20
}

// failures says what is wrong with b.
func (b *Backend) failures() (bad []error) {
	if b.Cycles < b.Wanted {
		bad = append(bad, fmt.Errorf("%s: %d cycles of %d were done", b.Name, b.Cycles, b.Wanted))
	}
	for _, w := range b.Wrong {
		bad = append(bad, fmt.Errorf("%s: %s", b.Name, w))
	}
	for _, s := range b.Slopes {
		if s.Leaks {
			bad = append(bad, fmt.Errorf("%s: %s grew from %d to %d", b.Name, s.Resource, s.First, s.Last))
		}
	}
	return bad
}
