package server

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/enclave-run/enclave/internal/control"
)

// ParseQuotas reads concurrent=4,perMinute=60 and the like.
func ParseQuotas(text string) (control.Quotas, error) {
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
