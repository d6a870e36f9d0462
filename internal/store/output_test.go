package store

import (
	"bytes"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/session"
)

// noise returns n bytes that are the same each time, and no two parts of which
// are.
func noise(n int, seed uint64) []byte {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	r := rand.NewChaCha8(sha256.Sum256(key[:]))
	b := make([]byte, n)
	r.Read(b) // never fails
	return b
}

// No value in the file is longer than a part: SQLite reads values whole.
func TestOutputIsKeptInParts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "enclave.db")
	s := open(t, path, Options{Every: never})
	n, err := s.Create(t.Context(), session.Session{ID: "s-1", Org: "acme", Phase: session.Pending}, session.Work{}, audit.Data{})
	if err != nil {
		t.Fatal(err)
	}
	n = runSession(t, s, n)
	n.Phase = session.Failed
	out := noise(3*partSize+7, 1)
	if _, err = s.Commit(t.Context(), n, &session.Collected{Stdout: session.Text{out[:5], out[5 : 2*partSize], out[2*partSize:]}, Stderr: session.Text{out[:partSize]}},
		audit.Event{Type: audit.ResultCollected}, audit.Event{Type: audit.WorkloadExited}, audit.Event{Type: audit.UsageMetered}); err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{0, 1, partSize - 1, partSize, 3*partSize + 6} {
		o, err := s.Output(t.Context(), "acme", "s-1", at, at, 1000)
		if err != nil || len(o.Stdout) == 0 || !bytes.HasPrefix(out[at:], o.Stdout) || at < partSize != (len(o.Stderr) > 0) {
			t.Errorf("at %d: %d and %d bytes, %v", at, len(o.Stdout), len(o.Stderr), err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if got, want := partsOf(t, path), "1.0:131072 1.1:131072 1.2:131072 1.3:7 2.0:131072 "; got != want {
		t.Errorf("parts are %s, want %s", got, want)
	}
}

// partsOf returns the streams, the numbers and the lengths of all parts.
func partsOf(t *testing.T, path string) (all string) {
	t.Helper()
	db, err := sql.Open("sqlite", dsn(path, "query_only(1)"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	rows, err := db.Query("SELECT stream, part, length(body) FROM output ORDER BY session, stream, part")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var stream, part, length int
		if err := rows.Scan(&stream, &part, &length); err != nil {
			t.Fatal(err)
		}
		all += fmt.Sprintf("%d.%d:%d ", stream, part, length)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}

// What an older program kept in one value is in parts, byte for byte, once the
// file was brought forward.
func TestOldOutputIsBroughtForwardInParts(t *testing.T) {
	path, _ := version1File(t)
	out := noise(9<<20+5, 2)
	db, err := sql.Open("sqlite", dsn(path))
	if err != nil {
		t.Fatal(err)
	}
	_, err = db.Exec("UPDATE results SET stdout = ?, stderr = ? WHERE session = 1", out, out[:partSize])
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	s := open(t, path, Options{Every: never})
	var stdout, stderr []byte
	for {
		o, err := s.Output(t.Context(), "acme", "s-0a1b2c-1", int64(len(stdout)), int64(len(stderr)), 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		if len(o.Stdout)+len(o.Stderr) == 0 {
			break
		}
		stdout, stderr = append(stdout, o.Stdout...), append(stderr, o.Stderr...)
	}
	if !bytes.Equal(stdout, out) || !bytes.Equal(stderr, out[:partSize]) {
		t.Errorf("%d and %d bytes are there, or others", len(stdout), len(stderr))
	}
}

// How many organisations' numbers are held ready is bounded, and those that are
// dropped go back: no number is lost, and none is given twice.
func TestNumbersOfManyOrganisationsAreBounded(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "enclave.db"), Options{})
	s.numbers.blocks = map[string]*block{}
	for i := range maxBlocks {
		s.numbers.blocks[fmt.Sprint("idle", i)] = new(block)
	}
	for round := range uint64(3) {
		for _, org := range []string{"a", "b", "c"} {
			if n, err := s.NextNumber(t.Context(), org); err != nil || n != round+1 {
				t.Errorf("%s got %d, %v, want %d", org, n, err, round+1)
			}
			if n := len(s.numbers.blocks); n > maxBlocks {
				t.Fatalf("%d are held", n)
			}
		}
	}
}
