package parity

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"github.com/enclave-run/enclave/internal/audit"
)

// asked is a request as a control plane reads it. Nothing of a Workload's may be
// missing here.
type asked struct {
	Code     string   `json:"code"`
	Argv     []string `json:"argv"`
	Language string   `json:"language"`
	Egress   struct {
		Mode  string   `json:"mode"`
		Allow []string `json:"allow"`
	} `json:"egress"`
	Limits struct {
		Pids        *int64 `json:"pidsLimit"`
		MemoryMB    *int64 `json:"memoryMb"`
		CPUMillis   *int64 `json:"cpuMillis"`
		CPUSeconds  *int64 `json:"cpuSeconds"`
		WallSeconds *int64 `json:"wallSeconds"`
		DiskMB      *int64 `json:"diskMb"`
		OutputBytes *int64 `json:"outputBytes"`
		EgressBytes *int64 `json:"egressBytes"`
	} `json:"limits"`
	Files map[string]string `json:"files"`
}

// hashed is the form of a request whose SHA-256 a control plane puts on record
// (control.Request, whose names these are).
type hashed struct {
	Code     string
	Argv     []string
	Language string
	Egress   struct {
		Mode  string   `json:"mode"`
		Allow []string `json:"allow"`
	}
	Limits struct {
		Pids, MemoryMB, CPUMillis, CPUSeconds, WallSeconds, DiskMB, OutputBytes, EgressBytes *int64
	}
	Files, Labels             map[string]string
	MinIsolation, Idempotency string
}

// RequestHash returns the requestHash with which every control plane records the
// request of w, so that a record can't be shown for a request that it is not of.
func (w Workload) RequestHash() (string, error) {
	raw, err := w.Request()
	if err != nil {
		return "", err
	}
	var a asked
	if err := audit.Strict(raw, &a); err != nil {
		return "", fmt.Errorf("read the request of %s: %w", w.Name, err)
	}
	h := hashed{Code: a.Code, Argv: a.Argv, Language: a.Language, Egress: a.Egress, Limits: struct {
		Pids, MemoryMB, CPUMillis, CPUSeconds, WallSeconds, DiskMB, OutputBytes, EgressBytes *int64
	}(a.Limits), Files: a.Files}
	raw, err = json.Marshal(h)
	if err != nil {
		return "", fmt.Errorf("encode the request of %s: %w", w.Name, err)
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:]), nil
}
