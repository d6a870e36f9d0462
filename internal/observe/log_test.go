package observe

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"
)

// quoted escapes as the program does, more or less.
func quoted(s string) string { q := strconv.QuoteToASCII(s); return q[1 : len(q)-1] }

// attack is what a terminal, a pager or who splits lines would obey: a control
// sequence, line breaks, C1's CSI, directions (CVE-2021-42574), a line
// separator, and bytes that are no text.
const attack = "a\x1b[2J\r\n{\"level\":\"INFO\"}\n\u009b31m\u202eb\u2066c\u2069\u2028\xff\x00z"

type named struct{}

func (named) String() string { return attack }

type valued struct{}

func (valued) LogValue() slog.Value { return slog.GroupValue(slog.String(attack, attack)) }

func TestNothingInALogIsObeyed(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		var b bytes.Buffer
		l, err := NewLogger(&b, format, slog.LevelInfo, quoted)
		if err != nil {
			t.Fatal(err)
		}
		l.With(attack, attack).WithGroup(attack).Info(attack,
			"string", attack, "err", fmt.Errorf("do: %w", errors.New(attack)), "stringer", named{}, "valuer", valued{},
			"group", slog.GroupValue(slog.String(attack, attack)), "any", []string{attack}, "bytes", []byte(attack), "map", map[string]string{attack: attack},
			attack, 1)
		got := b.String()
		if strings.Count(got, "\n") != 1 || !strings.HasSuffix(got, "\n") {
			t.Errorf("%s: not one line: %q", format, got)
		}
		if !utf8.ValidString(got) || strings.ContainsFunc(got[:len(got)-1], func(r rune) bool { return r < 0x20 || r >= 0x7f }) {
			t.Errorf("%s: %q", format, got)
		}
		if format == "json" {
			var m map[string]any
			if err := json.Unmarshal([]byte(got), &m); err != nil {
				t.Errorf("json: %v: %s", err, got)
			}
		}
	}
}

func TestALoggerIsWhatWasAskedFor(t *testing.T) {
	if _, err := NewLogger(io.Discard, "xml", slog.LevelInfo, quoted); err == nil {
		t.Error("a format that does not exist")
	}
	if _, err := NewLogger(io.Discard, "text", slog.LevelInfo, nil); err == nil {
		t.Error("a logger that escapes nothing")
	}
	var b bytes.Buffer
	l, err := NewLogger(&b, "text", slog.LevelWarn, quoted)
	if err != nil {
		t.Fatal(err)
	}
	l.Info("no")
	l.Warn("yes", "n", 1)
	if got := b.String(); strings.Contains(got, "no") || !strings.Contains(got, "msg=yes n=1") {
		t.Error(got)
	}
}
