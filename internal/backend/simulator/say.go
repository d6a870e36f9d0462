package simulator

import (
	"errors"
	"strings"

	"github.com/enclave-run/enclave/internal/wire"
)

// prints writes what is known of a print's arguments, and nothing at all if
// none is.
func (m *script) prints(args []argument) error {
	sep, end, known, n := " ", "\n", 0, 0
	var parts []text
	var stderr bool
	for _, a := range args {
		t, ok := show(a.value)
		switch {
		case a.name == "sep" && ok:
			sep = t.first(100)
		case a.name == "end" && ok:
			end = t.first(100)
		case a.name == "file":
			stderr = strings.HasSuffix(a.text, "stderr")
		case a.name == "":
			if n++; ok {
				known++
				parts = append(parts, t)
			}
		}
	}
	if n > 0 && known == 0 {
		return nil
	}
	if len(parts) == 1 && parts[0].n > 1 {
		return errors.Join(m.says(stderr, parts[0]), m.says(stderr, text{end, 1, false}))
	}
	var b strings.Builder
	for i, t := range parts {
		if i > 0 {
			b.WriteString(sep)
		}
		b.WriteString(t.first(maxStatement))
	}
	return m.says(stderr, text{b.String() + end, 1, false})
}

// says writes t.
func (m *script) says(stderr bool, t text) error {
	kind, i := wire.Stdout, 0
	if stderr {
		kind, i = wire.Stderr, 1
	}
	if err := m.spend(); err != nil || t.size() == 0 {
		return err
	}
	if s := m.said[i]; s.size()+t.size() <= wire.MaxChunk {
		m.said[i] = text{s.first(wire.MaxChunk) + t.first(wire.MaxChunk), 1, false}
	}
	return m.say(kind, t)
}

func (m *script) results(v value) error {
	s, ok := toJSON(v)
	if !ok {
		return nil
	}
	err := m.give(s)
	if err != nil && !errors.Is(err, errEnded) && !errors.Is(err, errTooMuch) {
		return raise("ValueError", "%v", err)
	}
	return err
}

func (m *script) exits(v value) error {
	switch v := v.(type) {
	case int64:
		return exit{int(v & 0xff)}
	case bool:
		return exit{map[bool]int{true: 1}[v]}
	case text:
		return errors.Join(m.says(true, v), m.says(true, text{"\n", 1, false}), exit{1})
	}
	return exit{0}
}
