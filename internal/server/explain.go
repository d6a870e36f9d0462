package server

import (
	"errors"
	"fmt"
	"strings"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/statedir"
	"golang.org/x/sys/unix"
)

// Log is where the control plane's operator reads what it did.
func (k *Link) Log() string {
	if k.About.Mode == statedir.ModeEmbedded {
		return k.Logged
	}
	return "the control plane's log"
}

// Explain adds to err what is known of a control plane that refused or went
// away.
func (k *Link) Explain(err error) error {
	if err == nil {
		return nil
	}
	if k.Lost == nil {
		return advise(err, k.Client)
	}
	select {
	case <-k.Lost:
		if k.About.Mode != statedir.ModeEmbedded {
			return fmt.Errorf("the control plane (process %d) ended: %w", k.About.PID, err)
		}
		return fmt.Errorf("the background control plane (process %d) ended: %w%s", k.About.PID, err, Tail(k.Logged))
	default:
		return err
	}
}

// advise adds to what a remote control plane answered which variable of the
// environment leads to another answer.
func advise(err error, c *enclave.Client) error {
	var refused *enclave.Error
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("%w: nothing listens where ENCLAVE_BASE_URL points", err)
	case errors.Is(err, enclave.ErrUnauthorized) && c.APIKey != "":
		return fmt.Errorf("%w: the server does not know this ENCLAVE_API_KEY, or it was revoked", err)
	case errors.Is(err, enclave.ErrUnauthorized) && c.Token != "":
		return fmt.Errorf("%w: the server does not accept this ENCLAVE_TOKEN, or it has expired", err)
	case errors.Is(err, enclave.ErrUnauthorized):
		return fmt.Errorf("%w: set ENCLAVE_API_KEY or ENCLAVE_TOKEN", err)
	case errors.As(err, &refused) && refused.Code == "http_400" && strings.HasPrefix(c.BaseURL, "http://"):
		return fmt.Errorf("%w: the response is not from an Enclave server: if the server speaks TLS, ENCLAVE_BASE_URL must begin with https://", err)
	}
	return err
}
