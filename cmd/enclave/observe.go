package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"strings"

	"github.com/enclave-run/enclave/internal/observe"
	"github.com/enclave-run/enclave/internal/ui"
	"github.com/spf13/cobra"
)

// observeOptions is what an operator sees of a control plane, and where.
type observeOptions struct {
	LogFormat string // --log-format, ENCLAVE_LOG_FORMAT: text or json
	LogLevel  string // --log-level, ENCLAVE_LOG_LEVEL: debug, info, warn or error
	// OTLPEndpoint is the URL of a collector of traces; "" sends none.
	OTLPEndpoint string // --otlp-endpoint, OTEL_EXPORTER_OTLP_ENDPOINT
}

func observeDefaults(or func(name, def string) string) observeOptions {
	return observeOptions{
		LogFormat:    or("ENCLAVE_LOG_FORMAT", "text"),
		LogLevel:     or("ENCLAVE_LOG_LEVEL", "info"),
		OTLPEndpoint: or("OTEL_EXPORTER_OTLP_ENDPOINT", ""),
	}
}

func (o *observeOptions) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&o.LogFormat, "log-format", o.LogFormat, "`FORMAT` of the log on stderr: text or json (ENCLAVE_LOG_FORMAT)")
	f.StringVar(&o.LogLevel, "log-level", o.LogLevel, "lowest `LEVEL` that is logged: debug, info, warn or error (ENCLAVE_LOG_LEVEL)")
	f.StringVar(&o.OTLPEndpoint, "otlp-endpoint", o.OTLPEndpoint, "`URL` of an OpenTelemetry collector that traces are sent to, by OTLP over HTTP (OTEL_EXPORTER_OTLP_ENDPOINT)")
}

func (o *observeOptions) validate() error {
	if _, err := o.logger(io.Discard); err != nil {
		return err
	}
	if o.OTLPEndpoint == "" {
		return nil
	}
	u, err := url.Parse(o.OTLPEndpoint)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.RawQuery != "" || u.Fragment != "" {
		return errors.New("--otlp-endpoint is not a URL such as http://127.0.0.1:4318")
	}
	if u.User != nil {
		return errors.New("--otlp-endpoint has user information, which every process listing shows: set OTEL_EXPORTER_OTLP_HEADERS instead")
	}
	return nil
}

// levels are the levels of the log by their names.
var levels = map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}

// logger returns the logger of a control plane, that writes to w.
func (o *observeOptions) logger(w io.Writer) (*slog.Logger, error) {
	level, ok := levels[strings.ToLower(o.LogLevel)]
	if !ok {
		return nil, fmt.Errorf("--log-level %q is not one of debug, info, warn and error", o.LogLevel)
	}
	if o.LogFormat != "text" && o.LogFormat != "json" {
		return nil, fmt.Errorf("--log-format %q is neither text nor json", o.LogFormat)
	}
	return observe.NewLogger(w, o.LogFormat, level, ui.Visible)
}

// newLogger returns the logger of a control plane that no operator set up.
func newLogger(w io.Writer) (*slog.Logger, error) {
	return (&observeOptions{LogFormat: "text", LogLevel: "info"}).logger(w)
}
