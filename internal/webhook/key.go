package webhook

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"io"
	"strconv"
	"strings"
	"time"
)

// Prefixes of keys in Standard Webhooks (https://www.standardwebhooks.com).
const (
	privatePrefix = "whsk_"
	publicPrefix  = "whpk_"
)

// A Key signs deliveries. It holds the private key where no formatting reaches.
// The zero Key signs nothing.
type Key struct {
	sign   func(message []byte) []byte
	public string
}

// GenerateKey returns a new private key, as text that ParseKey reads.
func GenerateKey(random io.Reader) ([]byte, error) {
	_, private, err := ed25519.GenerateKey(random)
	if err != nil {
		return nil, err
	}
	return []byte(privatePrefix + base64.StdEncoding.EncodeToString(private.Seed()) + "\n"), nil
}

// ParseKey reads a private key. Its errors repeat none of it.
func ParseKey(text []byte) (Key, error) {
	encoded, ok := strings.CutPrefix(strings.TrimSpace(string(text)), privatePrefix)
	seed, err := base64.StdEncoding.DecodeString(encoded)
	if !ok || err != nil || len(seed) != ed25519.SeedSize {
		return Key{}, errors.New("not a key for webhooks")
	}
	private := ed25519.NewKeyFromSeed(seed)
	return Key{
		sign:   func(m []byte) []byte { return ed25519.Sign(private, m) },
		public: publicPrefix + base64.StdEncoding.EncodeToString(private.Public().(ed25519.PublicKey)),
	}, nil
}

// Public returns the key that verifies what k signs: whpk_ and base64.
func (k Key) Public() string { return k.public }

// signature returns the webhook-signature of a delivery.
func (k Key) signature(id string, at time.Time, body []byte) string {
	m := append([]byte(id+"."+strconv.FormatInt(at.Unix(), 10)+"."), body...)
	return "v1a," + base64.StdEncoding.EncodeToString(k.sign(m))
}
