package control

import (
	"errors"
	"testing"
	"time"

	"github.com/enclave-run/enclave/internal/auth"
	"github.com/enclave-run/enclave/internal/request"
	"github.com/enclave-run/enclave/internal/session"
)

func TestUsageIsTheCallersOwnAndBounded(t *testing.T) {
	now := time.Date(2026, 11, 21, 23, 30, 0, 0, time.FixedZone("west", -3*3600)) // the 22nd in UTC
	a := newArchive(t, t.TempDir(), Retention{}, func() time.Time { return now }, nil)
	defer a.Close()
	a.put(t, session.Succeeded, now)
	today := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	days := func(n int) time.Time { return today.AddDate(0, 0, n) }
	for name, tc := range map[string]struct {
		from, to time.Time
		sessions int
		field    string // that is refused
	}{
		"by default":                    {sessions: 1},
		"the last 30 days":              {from: days(-29), sessions: 1},
		"today":                         {from: days(0), to: days(1), sessions: 1},
		"today, by other hours":         {from: now, to: now.AddDate(0, 0, 1), sessions: 1},
		"until today":                   {to: days(0)},
		"from tomorrow":                 {from: days(1), field: "from"},
		"no day":                        {from: days(0), to: days(0), field: "from"},
		"one day, by hours":             {from: days(0).Add(time.Hour), to: days(0).Add(2 * time.Hour), field: "from"},
		"backwards":                     {from: days(1), to: days(0), field: "from"},
		"366 days":                      {from: days(-365), to: days(1), sessions: 1},
		"367 days":                      {from: days(-366), to: days(1), field: "from"},
		"from the beginning of all":     {from: time.Unix(0, 0), field: "from"},
		"up to the end of all":          {to: time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC)},
		"from long ago to a day of old": {from: time.Unix(0, 0), to: time.Unix(86400, 0)},
	} {
		got, err := a.plane.Usage(t.Context(), caller, tc.from, tc.to)
		var v *request.FieldError
		if errors.As(err, &v) != (tc.field != "") || v != nil && v.Field != tc.field {
			t.Errorf("%s: %v, want a refusal of %q", name, err, tc.field)
		} else if v == nil && (err != nil || len(got) != tc.sessions) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	other := auth.Caller{User: "eve", Org: "globex", Scopes: []string{auth.ReadSessions}, Key: "k2"}
	if got, err := a.plane.Usage(t.Context(), other, time.Time{}, time.Time{}); err != nil || len(got) != 0 {
		t.Errorf("another organisation is told %+v, %v", got, err)
	}
	for _, c := range []auth.Caller{{}, {User: "ada", Org: caller.Org, Scopes: []string{auth.WriteSessions}, Key: "k1"}} {
		if _, err := a.plane.Usage(t.Context(), c, time.Time{}, time.Time{}); !errors.Is(err, ErrForbidden) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// An organisation is told what is stored and reserved of it, and nothing of others.
func TestAnAllowanceIsOneOrganisations(t *testing.T) {
	p, l := sizedPlane(t, func(c *Config) { c.Quotas = Quotas{Storage: 1 << 30, Waiting: 7} })
	if _, err := p.Create(t.Context(), caller, request.Request{Code: forever}); err != nil {
		t.Fatal(err)
	}
	got, err := p.Allowance(t.Context(), caller)
	if err != nil {
		t.Fatal(err)
	}
	stored, err := l.store.Storage(t.Context(), caller.Org)
	if err != nil || got.Stored.Requests == 0 || got.Stored.Requests != stored.Requests {
		t.Errorf("%+v, want %+v (%v)", got.Stored, stored, err)
	}
	if want := p.needOf(request.DefaultLimits(), 0).end; got.Reserved != want || got.Quotas.Storage != 1<<30 || got.Quotas.Waiting != 7 || got.Quotas.Concurrent != 128 {
		t.Errorf("%+v, want %d reserved", got, want)
	}
	other := auth.Caller{User: "bob", Org: "other", Scopes: caller.Scopes, Key: "k2"}
	if got, err := p.Allowance(t.Context(), other); err != nil || got.Reserved != 0 || got.Stored != (session.Storage{}) {
		t.Errorf("another organisation: %+v, %v", got, err)
	}
	if _, err := p.Allowance(t.Context(), auth.Caller{Org: "acme"}); !errors.Is(err, ErrForbidden) {
		t.Errorf("without the scope: %v", err)
	}
}
