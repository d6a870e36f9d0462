package server

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/enclave-run/enclave/internal/auth"
	"github.com/enclave-run/enclave/internal/control"
)

// parseQuotas reads concurrent=4,perMinute=60 and the like.
func parseQuotas(text string) (control.Quotas, error) {
	var q control.Quotas
	seen := map[string]bool{}
	for part := range strings.SplitSeq(text, ",") {
		name, value, ok := strings.Cut(part, "=")
		if !ok || seen[name] {
			return control.Quotas{}, fmt.Errorf("%q is not NAME=NUMBER, once for each name", part)
		}
		seen[name] = true
		if name == "perMinute" && value == "unlimited" {
			q.PerMinute = control.Unlimited
			continue
		}
		n, err := Positive(value)
		if err != nil {
			return control.Quotas{}, fmt.Errorf("%s=%q %w", name, value, err)
		}
		switch name {
		case "concurrent":
			q.Concurrent = int(n)
		case "perMinute":
			q.PerMinute = int(n)
		case "cpuSecondsPerDay":
			q.CPUSecondsPerDay = n
		case "waiting":
			q.Waiting = int(n)
		case "storageMb":
			q.Storage = n << 20
		default:
			return control.Quotas{}, fmt.Errorf("%q is not one of concurrent, perMinute, cpuSecondsPerDay, waiting and storageMb", name)
		}
	}
	return q, nil
}

// Positive reads a number that a bound can be.
func Positive(text string) (int64, error) {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 1 || n > 1_000_000_000 {
		return 0, fmt.Errorf("is not a number from 1 to 1000000000")
	}
	return n, nil
}

// UsualQuota names the quotas of every organisation that has none of its own.
const UsualQuota = "default"

// ParseQuotas reads ORG:concurrent=4,perMinute=60 and the like, of organisations and
// of all others.
func ParseQuotas(texts []string) (usual control.Quotas, special map[string]control.Quotas, err error) {
	special = map[string]control.Quotas{}
	seen := map[string]bool{}
	for _, text := range texts {
		org, bounds, ok := strings.Cut(text, ":")
		// Of a name that nobody can have the bounds would bind nobody.
		if !ok || !auth.ValidOrg(org) {
			return usual, nil, fmt.Errorf("%q is not ORG:concurrent=4,perMinute=60, or the same of default", text)
		}
		if seen[org] {
			return usual, nil, fmt.Errorf("names %q twice", org)
		}
		seen[org] = true
		q, err := parseQuotas(bounds)
		if err != nil {
			return usual, nil, fmt.Errorf("%q: %w", text, err)
		}
		if org == UsualQuota {
			usual = q
		} else {
			special[org] = q
		}
	}
	return usual, special, nil
}
