package server

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/enclave-run/enclave/internal/observe"
	"github.com/enclave-run/enclave/internal/statedir"
	"github.com/enclave-run/enclave/internal/webhook"
)

// webhookTimeout is how long one attempt may take.
const webhookTimeout = 10 * time.Second

// guardedClient returns a client for the control plane's own fetches.
func guardedClient(reach webhook.Reach, timeout time.Duration) (*http.Client, error) {
	return webhook.NewClient(webhook.ClientConfig{
		Reach: reach, Resolver: net.DefaultResolver, Dialer: &net.Dialer{}, Timeout: timeout,
	})
}

// webhooks makes what tells tenants' servers of ends. It does not work yet.
func (srv *Server) webhooks(s *statedir.Dir, reach webhook.Reach, m *observe.Metrics, log *slog.Logger, now func() time.Time) (*webhook.Worker, webhook.Key, error) {
	key, err := loadWebhookKey(s)
	if err != nil {
		return nil, webhook.Key{}, err
	}
	client, err := guardedClient(reach, webhookTimeout)
	if err != nil {
		return nil, webhook.Key{}, err
	}
	w, err := webhook.NewWorker(webhook.Config{
		Outbox: srv.Store, Client: client, Key: key, Log: log, Attempted: m.Delivered, Now: now,
	})
	return w, key, err
}

// loadWebhookKey returns the key that signs webhooks, and makes it if there is
// none. The caller holds the lock.
func loadWebhookKey(s *statedir.Dir) (webhook.Key, error) {
	path := s.File("db", "webhook.key")
	raw, err := statedir.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if raw, err = webhook.GenerateKey(rand.Reader); err == nil {
			err = statedir.WriteFile(path, raw, 0o600)
		}
	}
	if err != nil {
		return webhook.Key{}, fmt.Errorf("webhook key: %w", err)
	}
	key, err := webhook.ParseKey(raw)
	if err != nil {
		return webhook.Key{}, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}
