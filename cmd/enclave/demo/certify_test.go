package demo

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/enclave-run/enclave/internal/audit"
)

func certifying(t *testing.T, c Config) *certification {
	t.Helper()
	private, _, err := audit.GenerateKey(rand.Reader, "notary.example/log")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := audit.NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	return &certification{Config: c, notary: Notary{Signer: signer}, screen: &screen{w: c.Out}}
}

// What was certified once, and does not hold any more, is no evidence.
func TestNoEarlierCertificateSurvivesADisagreement(t *testing.T) {
	var out bytes.Buffer
	f := certifying(t, config(t, &out))
	var old []string
	for _, ext := range []string{".json", ".md"} {
		old = append(old, filepath.Join(f.Evidence, certificateName+ext))
		if err := os.WriteFile(old[len(old)-1], []byte("of yesterday"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f.fail("clean: the verdict is another")
	if err := f.finish(); err != nil || f.out.Passed || f.out.Certificate != "" {
		t.Fatalf("passed %v with %q, error %v", f.out.Passed, f.out.Certificate, err)
	}
	for _, path := range old {
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there: %v", path, err)
		}
	}
	if !strings.Contains(out.String(), "nothing was certified") || !strings.Contains(out.String(), "clean: the verdict is another") {
		t.Errorf("shown:\n%s", out.Bytes())
	}
}

// What does not bear itself out is not signed, whoever thinks that all is well.
func TestWhatDoesNotBearItselfOutIsNotSigned(t *testing.T) {
	var out bytes.Buffer
	f := certifying(t, config(t, &out))
	if err := f.finish(); err != nil || f.out.Passed {
		t.Fatalf("passed %v, error %v", f.out.Passed, err)
	}
	if files, err := os.ReadDir(f.Evidence); err != nil || len(files) > 0 {
		t.Errorf("written: %v, %v", files, err)
	}
	if !strings.Contains(out.String(), "does not bear itself out") {
		t.Errorf("shown:\n%s", out.Bytes())
	}
}

func TestOneKernelOrModelsAreNoParity(t *testing.T) {
	for _, backends := range [][]string{nil, {"gvisor"}, {Modelled, Modelled}, {"gvisor", Modelled}} {
		var out bytes.Buffer
		c := config(t, &out)
		c.Backends = backends
		c.Boot = func(context.Context, Boot) (*Plane, error) { t.Fatal("booted"); return nil, nil }
		if _, err := Certify(t.Context(), c, certifying(t, c).notary); err == nil || !strings.Contains(err.Error(), "two real backends") {
			t.Errorf("%q: error is %v", backends, err)
		}
	}
}
