package planetest_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/openapitest"
	"github.com/enclave-run/enclave/internal/planetest"
	"github.com/enclave-run/enclave/internal/verify"
)

// kept is a directory that testdata/kept/make.sh made with an older version.
type kept struct {
	t   *testing.T
	dir string
}

func (k kept) file(name string) []byte {
	k.t.Helper()
	b, err := os.ReadFile(filepath.Join(k.dir, name))
	if err != nil {
		k.t.Fatal(err)
	}
	return b
}

// key returns a public key of its log.
func (k kept) key(name string) string { return strings.TrimSpace(string(k.file(name))) }

func (k kept) decode(name string, v any) {
	k.t.Helper()
	if err := json.Unmarshal(k.file(name), v); err != nil {
		k.t.Fatalf("%s: %v", name, err)
	}
}

// end returns when its last session ended.
func (k kept) end() time.Time {
	k.t.Helper()
	var all enclave.Page[enclave.Session]
	k.decode("sessions.json", &all)
	return *all.Items[0].FinishedAt
}

// unpack writes the state directory to dir.
func (k kept) unpack(dir string) {
	k.t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(k.file("state.tar.gz")))
	if err != nil {
		k.t.Fatal(err)
	}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			return
		}
		if err != nil {
			k.t.Fatal(err)
		}
		path := filepath.Join(dir, h.Name)
		if h.Typeflag == tar.TypeDir {
			err = errors.Join(os.MkdirAll(path, 0o700), os.Chmod(path, h.FileInfo().Mode().Perm()))
		} else {
			var content []byte
			content, err = io.ReadAll(r)
			err = errors.Join(err, os.WriteFile(path, content, h.FileInfo().Mode().Perm()))
		}
		if err != nil {
			k.t.Fatal(err)
		}
	}
}

// What a version kept as its host lost power is taken up by this one: its keys,
// sessions, results, idempotency keys and usage are there, and its log goes on.
func TestWhatAnOlderVersionKeptIsTakenUp(t *testing.T) {
	states, err := filepath.Glob("testdata/kept/*/state.tar.gz")
	if err != nil || len(states) == 0 {
		t.Fatalf("%d kept state directories, %v", len(states), err)
	}
	for _, state := range states {
		dir := filepath.Dir(state)
		t.Run(filepath.Base(dir), func(t *testing.T) {
			k := kept{t, dir}
			work := t.TempDir()
			k.unpack(filepath.Join(work, "state"))
			// It is the day after, whatever the clock of this host says.
			begun := time.Now()
			p, err := planetest.Open(work, planetest.Config{
				Wrap: func(next http.Handler) http.Handler { return openapitest.Handler(t, next) },
				Now:  func() time.Time { return k.end().AddDate(0, 0, 1).Add(time.Since(begun)) },
			})
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			c := &enclave.Client{BaseURL: p.URL, APIKey: string(k.file("test-only.key"))}
			sessionsAreKept(t, k, c)
			idempotencyKeysAreKept(t, k, c)
			logGoesOn(t, k, c)
		})
	}
}

func sessionsAreKept(t *testing.T, k kept, c *enclave.Client) {
	var before enclave.Page[enclave.Session]
	var cut enclave.Session
	k.decode("sessions.json", &before)
	k.decode("interrupted.json", &cut)
	now, err := c.List(t.Context(), enclave.ListOptions{})
	if err != nil || len(now.Items) != len(before.Items)+1 {
		t.Fatalf("%d sessions, %v; want %d and the one that was interrupted", len(now.Items), err, len(before.Items))
	}
	if d := cmp.Diff(before.Items, now.Items[1:]); d != "" {
		t.Errorf("sessions, was and is:\n%s", d)
	}
	if s := now.Items[0]; s.ID != cut.ID || s.Outcome != enclave.Killed || s.KillReason != "backend_lost" {
		t.Errorf("the one that was interrupted: %+v", s)
	}
	var used enclave.UsageReport
	k.decode("usage.json", &used)
	end := k.end()
	uses, err := c.Usage(t.Context(), enclave.UsageOptions{From: end.AddDate(0, 0, -1), To: end.AddDate(0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(used.Items, uses.Items); d != "" {
		t.Errorf("usage, was and is:\n%s", d)
	}
	if s := uses.Storage; s.Output != used.Items[0].OutputBytes || s.Requests == 0 || s.Results == 0 || s.Records == 0 {
		t.Errorf("of what is stored is counted: %+v", s)
	}
}

func idempotencyKeysAreKept(t *testing.T, k kept, c *enclave.Client) {
	var first enclave.Session
	k.decode("repeated.json", &first)
	q := enclave.SessionRequest{Code: "print(6*7)\nenclave.result(42)", IdempotencyKey: "kept-key", Labels: map[string]string{"kept": "yes"}}
	h, err := c.Run(t.Context(), q)
	if err != nil || h.ID() != first.ID {
		t.Fatalf("the request again: %+v, %v; want session %s", h, err, first.ID)
	}
	if r, err := h.Result(t.Context()); err != nil || string(r.JSON) != "42" || r.Stdout != "42\n" {
		t.Errorf("its result %+v, %v", r, err)
	}
	q.Code = "enclave.result(43)"
	if _, err := c.Run(t.Context(), q); !errors.Is(err, enclave.ErrIdempotency) {
		t.Errorf("another request with its key: %v", err)
	}
}

func logGoesOn(t *testing.T, k kept, c *enclave.Client) {
	h, err := c.Run(t.Context(), enclave.SessionRequest{Code: "enclave.result(1)"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Result(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n, err := strconv.Atoi(h.ID()[strings.LastIndex(h.ID(), "-")+1:]); err != nil || n < 6 {
		t.Errorf("a new session after five is %s", h.ID())
	}

	// What was exported verifies, and so does what is exported now.
	if all, _ := verify.Record(bytes.NewReader(k.file("record.json")), k.key("first.vkey")); !verify.Holds(all) {
		t.Errorf("the record of a session that was exported: %+v", all)
	}
	r, err := audit.VerifyLog(bytes.NewReader(k.file("log.ndjson")), k.key("first.vkey"), audit.LogOptions{Checkpoints: bytes.NewReader(k.file("checkpoints"))})
	if err != nil || r.Rotations != 1 || r.Key != k.key("second.vkey") || r.Sessions != 5 || r.Open != 1 {
		t.Errorf("the log that was exported: %+v, %v", r, err)
	}
	page, err := c.List(t.Context(), enclave.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range page.Items {
		record, err := c.Export(t.Context(), s.ID)
		if all, _ := verify.Record(bytes.NewReader(record), k.key("first.vkey")); err != nil || !verify.Holds(all) {
			t.Errorf("session %s has the record %+v, %v", s.ID, all, err)
		}
	}

	// The log only grew since each checkpoint that was published.
	n := 0
	for old, err := range audit.Published(bytes.NewReader(k.file("checkpoints"))) {
		if err != nil {
			t.Fatal(err)
		}
		if n++; old.Tree.N == 0 {
			continue
		}
		signer := k.key("first.vkey")
		if _, err := audit.OpenCheckpoint(old.Note, signer); err != nil {
			signer = k.key("second.vkey")
		}
		memory, err := json.Marshal(verify.Seen{Version: 1, Pinned: k.key("first.vkey"), Key: signer, Checkpoint: string(old.Note)})
		if err != nil {
			t.Fatal(err)
		}
		w := verify.Witness{Remember: filepath.Join(t.TempDir(), "seen.json"), Copies: filepath.Join(k.dir, "checkpoints"),
			Ask: func(ctx context.Context, f func(context.Context, *enclave.Client) error) error { return f(ctx, c) }}
		if err := os.WriteFile(w.Remember, memory, 0o600); err != nil {
			t.Fatal(err)
		}
		if seen, err := w.Look(t.Context()); err != nil || seen.Key != k.key("second.vkey") || seen.Checkpoint == string(old.Note) {
			t.Errorf("the log since it had %d events: %+v, %v", old.Tree.N, seen, err)
		}
	}
	if n < 2 {
		t.Errorf("%d checkpoints were published", n)
	}
}
