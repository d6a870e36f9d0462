package control

import (
	"errors"
	"fmt"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/egress"
	"github.com/enclave-run/enclave/internal/request"
	"github.com/enclave-run/enclave/internal/session"
)

// A plan is a request that was understood, with every default filled in.
type plan struct {
	language string
	limits   session.Limits
	egress   session.Egress
	policy   egress.Policy
	work     session.Work
	webhook  string
	hash     string
	bytes    int64 // what the store takes for it
}

// understand turns r into a plan or says which field it does not accept.
func (p *Plane) understand(r request.Request) (plan, error) {
	var pl plan
	var err error
	if pl.language, pl.work, err = r.Check(); err != nil {
		return plan{}, err
	}
	if pl.limits, err = r.Limits.Fill(p.ceilings); err != nil {
		return plan{}, err
	}
	pl.bytes = requestBytes(r)
	if err := p.fits(pl.limits, pl.bytes); err != nil {
		return plan{}, err
	}
	if pl.webhook, err = p.understandWebhook(r.WebhookURL); err != nil {
		return plan{}, err
	}
	if err := p.isolated(r.MinIsolation); err != nil {
		return plan{}, err
	}
	pl.egress = session.Egress{Mode: r.Egress.Mode, Allow: append([]string{}, r.Egress.Allow...)}
	if pl.egress.Mode == "" {
		pl.egress.Mode = "deny_all"
	}
	pl.policy, err = egress.Parse(pl.egress.Mode, pl.egress.Allow, p.table)
	var rule *egress.RuleError
	switch {
	case errors.As(err, &rule) && rule.Index >= 0:
		return plan{}, request.Refuse(fmt.Sprintf("egress.allow[%d]", rule.Index), "%s", rule.Detail)
	case err != nil:
		return plan{}, request.Refuse("egress", "%v", err)
	}
	pl.hash = r.Hash()
	return pl, nil
}

// understandWebhook returns raw in canonical form.
func (p *Plane) understandWebhook(raw string) (string, error) {
	if raw == "" {
		return "", nil
	}
	if p.webhook == nil {
		return "", request.Refuse("webhookUrl", "this control plane sends no webhooks")
	}
	u, err := p.webhook(raw)
	if err != nil {
		return "", request.Refuse("webhookUrl", "%v", err)
	}
	return u, nil
}

func (p *Plane) isolated(minimum string) error {
	if minimum == "" {
		return nil
	}
	want, err := backend.ParseIsolation(minimum)
	if err != nil {
		return request.Refuse("minIsolation", "%v", err)
	}
	if have := p.backend.Info().Isolation; have < want {
		return fmt.Errorf("%w: %s is below %s", ErrIsolation, have, want)
	}
	return nil
}
