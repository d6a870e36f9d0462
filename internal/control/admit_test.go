package control

import (
	"errors"
	"testing"

	"github.com/enclave-run/enclave/internal/auth"
	"github.com/enclave-run/enclave/internal/backend/simulator"
	"github.com/enclave-run/enclave/internal/request"
	"github.com/enclave-run/enclave/internal/session"
)

// stranger is a caller of another organisation than caller's.
var stranger = func() auth.Caller {
	c := caller
	c.Org, c.Key = "other", "k2"
	return c
}()

// drawn makes p draw what it is given, and after that at random.
func drawn(p *Plane, hex ...string) {
	p.random = func(n int) string {
		if n == 3 && len(hex) > 0 {
			next := hex[0]
			hex = hex[1:]
			return next
		}
		return random(n)
	}
}

// Whatever is drawn, no organisation gets the id of another's session: neither
// of one that lives, which would be lost, nor of one that is only stored.
func TestNoSessionTakesAnothersID(t *testing.T) {
	l := newLab(t, simulator.New())
	l.open(l.configured(func(*Config) {}))
	t.Cleanup(l.close)
	p := l.plane
	drawn(p, "aaaaaa", "aaaaaa", "bbbbbb", "aaaaaa", "bbbbbb", "cccccc")
	first, err := p.Create(t.Context(), caller, request.Request{Code: forever})
	if err != nil || first.ID != "s-aaaaaa-1" {
		t.Fatalf("%s, %v", first.ID, err)
	}
	p.mu.Lock()
	led := p.live[first.ID]
	p.mu.Unlock()
	second, err := p.Create(t.Context(), stranger, request.Request{Code: "print(1)"})
	if err != nil || second.ID != "s-bbbbbb-1" {
		t.Fatalf("beside a session that lives: %s, %v", second.ID, err)
	}
	p.mu.Lock()
	still := p.live[first.ID]
	p.mu.Unlock()
	if still != led || led == nil {
		t.Error("the live session is no longer led by its own")
	}
	if _, err := p.Teardown(t.Context(), stranger, second.ID); err != nil { // then it is only stored
		t.Fatal(err)
	}
	third := stranger
	third.Org = "third"
	got, err := p.Create(t.Context(), third, request.Request{Code: "print(1)"})
	if err != nil || got.ID != "s-cccccc-1" {
		t.Fatalf("beside stored sessions: %s, %v", got.ID, err)
	}
	if s, err := p.Session(t.Context(), caller, first.ID); err != nil || s.Org != caller.Org {
		t.Errorf("%+v, %v", s, err)
	}
}

// The place of a live session is not given away even if the store knows nothing
// of it yet, and somebody who draws nothing else gives up.
func TestAnIDThatIsLiveIsRefused(t *testing.T) {
	l := newLab(t, simulator.New())
	l.open(l.configured(func(*Config) {}))
	t.Cleanup(l.close)
	p := l.plane
	led := &liveSession{}
	p.mu.Lock()
	p.live["s-aaaaaa-1"] = led
	p.mu.Unlock()
	p.random = func(int) string { return "aaaaaa" }
	if s, err := p.Create(t.Context(), caller, request.Request{Code: "print(1)"}); !errors.Is(err, errTaken) {
		t.Errorf("%s, %v", s.ID, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.live["s-aaaaaa-1"] != led {
		t.Error("it is another's now")
	}
	delete(p.live, "s-aaaaaa-1")
}

// Numbers are an organisation's own: what others do does not show in them.
func TestAnIDTellsNothingOfOtherOrganisations(t *testing.T) {
	l := newLab(t, simulator.New())
	l.open(l.configured(func(*Config) {}))
	t.Cleanup(l.close)
	var ids []string
	for range 2 {
		for _, c := range []auth.Caller{caller, stranger} {
			s, err := l.plane.Create(t.Context(), c, request.Request{Code: "print(1)"})
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, s.ID[9:])
		}
	}
	if got := ids; got[0] != "1" || got[1] != "1" || got[2] != "2" || got[3] != "2" {
		t.Errorf("numbers are %v", got)
	}
	own, err := l.plane.Sessions(t.Context(), caller, "", 10)
	if err != nil || len(own) != 2 || own[0].ID[9:] != "2" || own[0].Phase == session.TornDown {
		t.Errorf("%+v, %v", own, err)
	}
}

// What a live session wrote is given from any place, and grows without being
// moved: who has a part of it has it as it was.
func TestWrittenIsGivenFromAnyPlace(t *testing.T) {
	var w written
	var whole []byte
	for i := range 5000 {
		piece := make([]byte, i%200)
		for j := range piece {
			piece[j] = byte(i + j)
		}
		w.add(piece)
		whole = append(whole, piece...)
	}
	if w.length != int64(len(whole)) || w.text().Len() != w.length || len(w.blocks) != len(whole)/maxUpdate+1 {
		t.Fatalf("%d bytes in %d blocks, want %d", w.length, len(w.blocks), len(whole))
	}
	for at := 0; at < len(whole); at += 997 {
		part := w.after(int64(at))
		if len(part) == 0 || string(part) != string(whole[at:at+len(part)]) {
			t.Fatalf("from %d come %d other bytes", at, len(part))
		}
	}
	for _, at := range []int64{-1, w.length, 1 << 62} {
		if part := w.after(at); part != nil {
			t.Errorf("from %d come %d bytes", at, len(part))
		}
	}
	last := w.after(w.length - 1)
	w.add([]byte("more"))
	if len(last) != 1 || cap(last) != 1 {
		t.Errorf("who had the last byte has %d, and room for %d", len(last), cap(last))
	}
}
