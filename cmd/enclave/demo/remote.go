package demo

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// ParseRemotes reads lists of label=value: the URLs of control planes, and for some of
// them a key and the fingerprint of a certificate. Each list is called as it is in the
// environment; errors never quote a value, which may be a key.
func ParseRemotes(urls, keys, fingerprints [2]string) ([]Remote, error) {
	all, err := Labelled(urls[0], urls[1])
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s names no control plane: unset it, or set it to label=url,label=url", urls[0])
	}
	var remotes []Remote
	at := map[string]int{}
	for i, u := range all {
		at[u[0]] = i
		remotes = append(remotes, Remote{Label: u[0], BaseURL: u[1]})
	}
	for _, list := range []struct {
		name, text, what string
		set              func(*Remote, string) error
	}{
		{keys[0], keys[1], "a key", func(r *Remote, v string) error { r.APIKey = v; return nil }},
		{fingerprints[0], fingerprints[1], "a fingerprint", func(r *Remote, v string) (err error) {
			if !strings.HasPrefix(r.BaseURL, "https://") {
				return errors.New("whose URL is not https: nothing would be verified")
			}
			r.Fingerprint, err = Fingerprint(v)
			return err
		}},
	} {
		values, err := Labelled(list.name, list.text)
		if err != nil {
			return nil, err
		}
		for _, v := range values {
			i, known := at[v[0]]
			if !known {
				return nil, fmt.Errorf("%s has %s for %q, which %s does not name", list.name, list.what, v[0], urls[0])
			}
			if err := list.set(&remotes[i], v[1]); err != nil {
				return nil, fmt.Errorf("%s of %s: %w", list.name, v[0], err)
			}
		}
	}
	return remotes, nil
}

// Fingerprint returns the SHA-256 of a certificate in the form that reports have: 64
// hex digits, small and without colons.
func Fingerprint(text string) (string, error) {
	b, err := hex.DecodeString(strings.ReplaceAll(text, ":", ""))
	if err != nil || len(b) != 32 {
		return "", errors.New("is not 64 hex digits: `enclave serve` prints it when it starts")
	}
	return hex.EncodeToString(b), nil
}

// Labelled reads label=value,label=value in its order. Errors never quote a
// value: it may be a key.
func Labelled(name, list string) ([][2]string, error) {
	var all [][2]string
	seen := map[string]bool{}
	for i, part := range strings.Split(list, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		label, value, ok := strings.Cut(part, "=")
		if !ok || label == "" || value == "" {
			return nil, fmt.Errorf("part %d of %s is not label=value", i+1, name)
		}
		if seen[label] {
			return nil, fmt.Errorf("%s names %q twice", name, label)
		}
		seen[label] = true
		all = append(all, [2]string{label, value})
	}
	return all, nil
}
