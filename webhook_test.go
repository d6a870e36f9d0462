package enclave_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/enclave-run/enclave"
)

func TestVerifyWebhookTakesOnlyWhatWasSigned(t *testing.T) {
	private := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize))
	public := "whpk_" + base64.StdEncoding.EncodeToString(private.Public().(ed25519.PublicKey))
	other := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{8}, ed25519.SeedSize))
	now := time.Unix(1_790_000_000, 0)
	body := []byte(`{"type":"session.ended"}`)
	signed := func(by ed25519.PrivateKey, id string, at time.Time) http.Header {
		ts := strconv.FormatInt(at.Unix(), 10)
		h := http.Header{}
		h.Set("webhook-id", id)
		h.Set("webhook-timestamp", ts)
		h.Set("webhook-signature", "v1a,"+base64.StdEncoding.EncodeToString(ed25519.Sign(by, append([]byte(id+"."+ts+"."), body...))))
		return h
	}
	good := signed(private, "ended_s-0a1b2c-7", now)
	if err := enclave.VerifyWebhook(good, body, public, now); err != nil {
		t.Error(err)
	}
	for _, skew := range []time.Duration{-5 * time.Minute, 5 * time.Minute} {
		if err := enclave.VerifyWebhook(good, body, public, now.Add(skew)); err != nil {
			t.Errorf("%s: %v", skew, err)
		}
	}
	with := func(name string, values ...string) http.Header {
		h := good.Clone()
		h.Del(name)
		for _, v := range values {
			h.Add(name, v)
		}
		return h
	}
	rotated := with("webhook-signature", "v1,xxxx v1a,AAAA "+good.Get("webhook-signature"))
	if err := enclave.VerifyWebhook(rotated, body, public, now); err != nil {
		t.Errorf("one of several signatures: %v", err)
	}
	flipped := bytes.Clone(body)
	flipped[3] ^= 1
	for name, err := range map[string]error{
		"another body":            enclave.VerifyWebhook(good, flipped, public, now),
		"another key":             enclave.VerifyWebhook(signed(other, "ended_s-0a1b2c-7", now), body, public, now),
		"another id":              enclave.VerifyWebhook(with("webhook-id", "ended_s-0a1b2c-8"), body, public, now),
		"an id with a full stop":  enclave.VerifyWebhook(signed(private, "a.b", now), body, public, now),
		"another time":            enclave.VerifyWebhook(with("webhook-timestamp", strconv.FormatInt(now.Unix()+1, 10)), body, public, now),
		"long ago":                enclave.VerifyWebhook(good, body, public, now.Add(5*time.Minute+time.Second)),
		"in the future":           enclave.VerifyWebhook(good, body, public, now.Add(-5*time.Minute-time.Second)),
		"no signature":            enclave.VerifyWebhook(with("webhook-signature"), body, public, now),
		"two signature headers":   enclave.VerifyWebhook(with("webhook-signature", good.Get("webhook-signature"), "v1a,AAAA"), body, public, now),
		"a symmetric signature":   enclave.VerifyWebhook(with("webhook-signature", "v1,"+good.Get("webhook-signature")[4:]), body, public, now),
		"no key":                  enclave.VerifyWebhook(good, body, "", now),
		"a key of another length": enclave.VerifyWebhook(good, body, public[:20], now),
	} {
		if !errors.Is(err, enclave.ErrWebhook) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
