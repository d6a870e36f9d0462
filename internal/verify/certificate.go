package verify

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"

	"github.com/enclave-run/enclave/internal/parity"
)

// ReadCertificate reads a file that a certificate may be in.
func ReadCertificate(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > parity.MaxCertificate {
		return nil, fmt.Errorf("%s has more than %d bytes: it is not a certificate", path, parity.MaxCertificate)
	}
	return os.ReadFile(path)
}

// Certificate returns what holds of a certificate, and the certificate if
// it is signed.
func Certificate(raw []byte, vkey string, pinned map[string]string) (parity.Certificate, []Property) {
	cert, err := parity.Open(raw, vkey)
	signed := Property{"the file is a certificate in its one canonical form, signed by the key", err == nil, Reason(err)}
	if err != nil {
		return parity.Certificate{}, []Property{signed}
	}
	err = cert.Check()
	all := []Property{signed, {"nothing is missing; each record is in its log, and the verdict is one", err == nil, Reason(err)}}
	if len(pinned) == 0 {
		return cert, all
	}
	var wrong []error
	for _, label := range slices.Sorted(maps.Keys(pinned)) {
		found := false
		for _, b := range cert.Backends {
			found = found || b.Label == label && b.LogKey == pinned[label]
		}
		if !found {
			wrong = append(wrong, fmt.Errorf("%s is not there, or its log has another key", label))
		}
	}
	err = errors.Join(wrong...)
	return cert, append(all, Property{"the logs have the keys that were given", err == nil, Reason(err)})
}
