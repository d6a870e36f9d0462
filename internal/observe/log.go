package observe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"
)

// NewLogger returns a logger that writes one line for each record, as text or,
// if format is "json", as JSON. In every message, key and value, those of errors
// and of what else has words included, escape is applied to the text, so that
// nothing that a workload, a client or a server contributed is obeyed by a
// terminal or read as another line. Durations are in seconds.
func NewLogger(w io.Writer, format string, level slog.Level, escape func(string) string) (*slog.Logger, error) {
	if w == nil || escape == nil {
		return nil, errors.New("observe: a logger needs a writer and what escapes")
	}
	o := &slog.HandlerOptions{Level: level}
	switch format {
	case "text":
		return slog.New(plain{slog.NewTextHandler(w, o), escape}), nil
	case "json":
		return slog.New(plain{slog.NewJSONHandler(w, o), escape}), nil
	}
	return nil, fmt.Errorf("the log format %q is neither text nor json", format)
}

// plain escapes what it hands on.
type plain struct {
	to     slog.Handler
	escape func(string) string
}

func (p plain) Enabled(ctx context.Context, l slog.Level) bool { return p.to.Enabled(ctx, l) }

func (p plain) Handle(ctx context.Context, r slog.Record) error {
	clean := slog.NewRecord(r.Time, r.Level, p.escape(r.Message), r.PC)
	r.Attrs(func(a slog.Attr) bool {
		clean.AddAttrs(p.attr(a))
		return true
	})
	return p.to.Handle(ctx, clean)
}

func (p plain) WithAttrs(as []slog.Attr) slog.Handler {
	clean := make([]slog.Attr, len(as))
	for i, a := range as {
		clean[i] = p.attr(a)
	}
	return plain{p.to.WithAttrs(clean), p.escape}
}

func (p plain) WithGroup(name string) slog.Handler {
	return plain{p.to.WithGroup(p.escape(name)), p.escape}
}

func (p plain) attr(a slog.Attr) slog.Attr {
	a.Key = p.escape(a.Key)
	switch v := a.Value.Resolve(); v.Kind() {
	case slog.KindString:
		a.Value = slog.StringValue(p.escape(v.String()))
	case slog.KindGroup:
		group := make([]slog.Attr, len(v.Group()))
		for i, g := range v.Group() {
			group[i] = p.attr(g)
		}
		a.Value = slog.GroupValue(group...)
	case slog.KindAny:
		// Whatever it is, its words are text: a handler would call its methods.
		a.Value = slog.StringValue(p.escape(fmt.Sprint(v.Any())))
	case slog.KindDuration: // in seconds, as in the metrics, and in ASCII
		a.Value = slog.Float64Value(v.Duration().Round(time.Microsecond).Seconds())
	default: // numbers, truth and times have no words
		a.Value = v
	}
	return a
}
