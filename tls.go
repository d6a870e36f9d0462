package enclave

import (
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"net/http"
	"net/url"
	"strings"
)

// checkPin refuses settings with which TLSFingerprint would be ignored.
func (c *Client) checkPin(base string) error {
	if c.TLSFingerprint == "" || c.Socket != "" {
		return nil
	}
	if c.HTTPClient != nil {
		return errors.New("enclave: TLSFingerprint and HTTPClient exclude each other")
	}
	if u, err := url.Parse(base); err != nil || u.Scheme != "https" {
		return errors.New("enclave: with a TLSFingerprint the BaseURL must be https")
	}
	return nil
}

// PinnedTransport returns a transport that talks to the server whose certificate has
// that SHA-256, in hex, with or without colons, and to no other. It verifies nothing
// else of the certificate. [Client.TLSFingerprint] uses it; it is for those who need
// more of the transport, such as a proxy.
func PinnedTransport(fingerprint string) *http.Transport {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.TLSClientConfig = &tls.Config{
		MinVersion: tls.VersionTLS12,
		// The fingerprint is verified instead of a chain and a name.
		InsecureSkipVerify: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			want, err := hex.DecodeString(strings.ReplaceAll(fingerprint, ":", ""))
			if err != nil || len(want) != sha256.Size {
				return errors.New("TLSFingerprint is not the SHA-256 of a certificate: 64 hex digits")
			}
			if len(s.PeerCertificates) == 0 {
				return errors.New("the server has no certificate")
			}
			have := sha256.Sum256(s.PeerCertificates[0].Raw)
			if subtle.ConstantTimeCompare(have[:], want) != 1 {
				return errors.New("the server's certificate is not the one of TLSFingerprint; it has " + hex.EncodeToString(have[:]))
			}
			return nil
		},
	}
	return t
}
