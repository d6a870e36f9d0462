package gateway

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/egress"
)

const (
	maxRows    = 200              // rows of a session's record, then one for all the rest
	lookupTime = 5 * time.Second  // questions for one name within it are one look-up
	recordTime = 10 * time.Second // how long a recorder may take over one event
	anyHost    = "*"              // the host of the row for all the rest, and of what has none
)

// errFull says that the record has no row left for an attempt, which therefore
// cannot be allowed.
var errFull = errors.New("the session's record is full")

// An entry is what tells attempts apart in the record.
type entry struct {
	host     string
	port     uint16
	protocol string
	reason   egress.Reason
}

// A place is where an attempt goes that a rule allows.
type place struct {
	host string
	port uint16
}

func (p place) entry(r egress.Reason) entry {
	return entry{host: p.host, port: p.port, protocol: "tcp", reason: r}
}

// outcomes are what can become of an attempt that has taken its row.
var outcomes = []egress.Reason{egress.Allowed, egress.NoAddress, egress.ReservedAddress}

type row struct {
	entry
	rule  string
	more  uint64    // attempts after the first
	asked time.Time // when the look-up that was counted last began
}

// A ledger keeps a session's record of attempts. The first of each kind is
// durable when deny or settle returns; the others are counted, and close records
// the counts. Once the recorder has failed the ledger fails for ever.
//
// An attempt that a rule allows takes its row first: before anything is asked or
// dialled for it, there is room for whatever becomes of it.
type ledger struct {
	rec     audit.Recorder
	session string
	now     func() time.Time
	fail    func(error) // told of the first failure

	mu   sync.Mutex // held while recording, so that the record has the order of the attempts
	rows map[entry]*row
	list []*row         // in order of first attempt
	held map[place]bool // rows that are taken by attempts not settled yet; with list at most maxRows
	rest uint64         // attempts that have no row
	err  error
}

func newLedger(rec audit.Recorder, session string, now func() time.Time, fail func(error)) *ledger {
	return &ledger{rec: rec, session: session, now: now, fail: fail, rows: map[entry]*row{}, held: map[place]bool{}}
}

// deny records a refused attempt. On an error the session is to end.
func (l *ledger) deny(ctx context.Context, e entry) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, err := l.count(ctx, audit.EgressDenied, e, "")
	if errors.Is(err, errFull) {
		return nil
	}
	return err
}

// take makes sure of a row for an attempt that a rule allows. On an error, which
// is errFull if only the record is full, nothing may be done for the attempt, which
// is counted. Else settle must follow.
//
// A place that has a row needs no other, so a full record does not stop what it
// names: an outcome that is new for the place is then counted in the last row.
func (l *ledger) take(p place) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return l.err
	}
	if l.held[p] || slices.ContainsFunc(outcomes, func(r egress.Reason) bool { return l.rows[p.entry(r)] != nil }) {
		return nil
	}
	if l.full() {
		l.rest++
		return errFull
	}
	l.held[p] = true
	return nil
}

// settle records what became of an attempt that has taken its row: one of
// outcomes. On an error the attempt must not go on.
func (l *ledger) settle(ctx context.Context, p place, reason egress.Reason, rule string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := audit.EgressAllowed
	if reason != egress.Allowed {
		t, rule = audit.EgressDenied, ""
	}
	// The first attempt to be settled makes the place's row. Others on their way to
	// the place find it.
	delete(l.held, p)
	_, err := l.count(ctx, t, p.entry(reason), rule)
	return err
}

// full is called with mu held.
func (l *ledger) full() bool { return len(l.list)+len(l.held) >= maxRows }

// refuseName records that a look-up was refused. Questions for one name within
// five seconds are one look-up.
func (l *ledger) refuseName(ctx context.Context, host string, reason egress.Reason) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := entry{host: host, protocol: "dns", reason: reason}
	now := l.now()
	if r := l.rows[e]; r != nil && l.err == nil {
		if now.Sub(r.asked) < lookupTime {
			return nil
		}
		r.asked = now
	}
	r, err := l.count(ctx, audit.EgressDenied, e, "")
	if errors.Is(err, errFull) {
		return nil
	}
	if r != nil {
		r.asked = now
	}
	return err
}

// drop counts attempts that were not judged because there were too many.
func (l *ledger) drop(n uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rest += n
}

// count is called with mu held.
func (l *ledger) count(ctx context.Context, t audit.Type, e entry, rule string) (*row, error) {
	if l.err != nil {
		return nil, l.err
	}
	if r := l.rows[e]; r != nil {
		r.more++
		return r, nil
	}
	if l.full() {
		l.rest++
		return nil, errFull
	}
	r := &row{entry: e, rule: rule}
	if err := l.record(ctx, t, r, 1); err != nil {
		return nil, err
	}
	l.rows[e] = r
	l.list = append(l.list, r)
	return r, nil
}

func (l *ledger) record(ctx context.Context, t audit.Type, r *row, count uint64) error {
	// The end of the session must not lose the attempt that was being recorded.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTime)
	defer cancel()
	err := l.rec.Record(ctx, l.session, t, audit.Data{
		Host: r.host, Port: r.port, Protocol: r.protocol, Reason: string(r.reason), Rule: r.rule, Count: count,
	})
	if err != nil {
		l.err = fmt.Errorf("record %s of session %s: %w", t, l.session, err)
		l.fail(l.err)
	}
	return l.err
}

// close records the counts of all attempts after the first, in order of first
// attempt, and then what had no row. Nothing may be counted after it.
func (l *ledger) close(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.list {
		if l.err != nil {
			return l.err
		}
		if r.more == 0 {
			continue
		}
		t := audit.EgressDenied
		if r.reason == egress.Allowed {
			t = audit.EgressAllowed
		}
		if err := l.record(ctx, t, r, r.more); err != nil {
			return err
		}
	}
	if l.err == nil && l.rest > 0 {
		all := &row{entry: entry{host: anyHost, protocol: "other", reason: egress.OverBudget}}
		return l.record(ctx, audit.EgressDenied, all, l.rest)
	}
	return l.err
}
