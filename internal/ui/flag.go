package ui

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// A Size is a flag in bytes. A plain number is in unit; a suffix k, M, G or T
// (also KB, MB, KiB, MiB...) says otherwise. All are powers of 1024, as every
// container tool has it.
type Size struct {
	Unit  int64 // what a plain number counts
	bytes int64
	set   bool
}

var suffixes = map[string]int64{"b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}

func (s *Size) Type() string { return "SIZE" }

func (s *Size) String() string {
	if !s.set {
		return ""
	}
	return strconv.FormatInt(s.bytes, 10)
}

func (s *Size) Set(text string) error {
	digits := strings.TrimRight(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
	unit := s.Unit
	if strings.TrimSpace(digits) == "" {
		return fmt.Errorf("%q is not a size such as 512, 100k or 2G", text)
	}
	if suffix := strings.ToLower(text[len(digits):]); suffix != "" {
		if suffix != "b" {
			suffix = strings.TrimSuffix(strings.TrimSuffix(suffix, "b"), "i")
		}
		var ok bool
		if unit, ok = suffixes[suffix]; !ok {
			return fmt.Errorf("%q has no unit we know: write a number, or one with k, M or G", text)
		}
	}
	n, err := strconv.ParseFloat(strings.TrimSpace(digits), 64)
	if err != nil || math.IsInf(n, 0) || math.IsNaN(n) {
		return fmt.Errorf("%q is not a size such as 512, 100k or 2G", text)
	}
	b := n * float64(unit)
	if b > math.MaxInt64/2 || b < -math.MaxInt64/2 {
		return fmt.Errorf("%q is too large", text)
	}
	s.bytes, s.set = int64(b), true
	return nil
}

// In returns the size in units of n bytes. What is not whole is refused: it
// would be another limit than the one that was written.
func (s *Size) In(flag string, n int64) (*int64, error) {
	if !s.set {
		return nil, nil
	}
	if s.bytes%n != 0 {
		return nil, fmt.Errorf("%s is not a whole number of %s", flag, map[int64]string{1 << 20: "MiB", 1: "bytes"}[n])
	}
	v := s.bytes / n
	return &v, nil
}

// Seconds is a flag in seconds: a plain number, or a duration such as 30s or 5m.
type Seconds struct {
	n   int64
	set bool
}

func (s *Seconds) Type() string { return "DURATION" }

func (s *Seconds) String() string {
	if !s.set {
		return ""
	}
	return strconv.FormatInt(s.n, 10)
}

func (s *Seconds) Set(text string) error {
	if n, err := strconv.ParseInt(text, 10, 64); err == nil {
		s.n, s.set = n, true
		return nil
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		return fmt.Errorf("%q is not a time such as 30, 30s or 5m", text)
	}
	if d%time.Second != 0 {
		return fmt.Errorf("%q is not a whole number of seconds", text)
	}
	s.n, s.set = int64(d/time.Second), true
	return nil
}

func (s *Seconds) Value() *int64 {
	if !s.set {
		return nil
	}
	return &s.n
}

// CPUs is a flag: a share of CPUs such as 1 or 0.5, kept in thousandths.
type CPUs struct {
	millis int64
	set    bool
}

func (c *CPUs) Type() string { return "NUMBER" }

func (c *CPUs) String() string {
	if !c.set {
		return ""
	}
	return strconv.FormatFloat(float64(c.millis)/1000, 'f', -1, 64)
}

func (c *CPUs) Set(text string) error {
	n, err := strconv.ParseFloat(text, 64)
	if err != nil || math.IsNaN(n) || math.Abs(n) > 1e6 {
		return fmt.Errorf("%q is not a number of CPUs such as 1 or 0.5", text)
	}
	c.millis, c.set = int64(math.Round(n*1000)), true
	return nil
}

func (c *CPUs) Value() *int64 {
	if !c.set {
		return nil
	}
	return &c.millis
}
