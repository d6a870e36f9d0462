package statedir

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/klauspost/compress/zstd"
)

// carrying returns a carrier with both programs inside, with or without a list
// of their digests.
func carrying(t *testing.T, listed bool) Carrier {
	t.Helper()
	inside, sums := fstest.MapFS{}, ""
	for _, name := range []string{guestProgram, runscProgram} {
		program := bytes.Repeat([]byte(name+"\n"), 10_000)
		var b bytes.Buffer
		w, err := zstd.NewWriter(&b)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(program); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		inside[name+".zst"] = &fstest.MapFile{Data: b.Bytes()}
		sum := sha256.Sum256(program)
		sums += hex.EncodeToString(sum[:]) + "  " + name + "\n"
	}
	if listed {
		inside["SHA256SUMS"] = &fstest.MapFile{Data: []byte(sums)}
	}
	return Carrier{Inside: inside}
}

func TestProgramsAreUnpackedByDigestAndVerified(t *testing.T) {
	for _, listed := range []bool{true, false} {
		c, bin := carrying(t, listed), t.TempDir()
		p, err := c.Unpack(bin)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := os.ReadFile(p.Guest)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(raw)
		if want := filepath.Join(bin, hex.EncodeToString(sum[:]), guestProgram); p.Guest != want {
			t.Errorf("guest is at %s, want %s", p.Guest, want)
		}
		if again, err := c.Unpack(bin); err != nil || again != p {
			t.Errorf("second unpack: %+v, %v", again, err)
		}
	}
}

func TestDamagedProgramIsReplacedNotRun(t *testing.T) {
	c, bin := carrying(t, true), t.TempDir()
	p, err := c.Unpack(bin)
	if err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(p.Runsc)
	if err != nil {
		t.Fatal(err)
	}
	for name, damage := range map[string]func() error{
		"one bit":      func() error { b := bytes.Clone(good); b[7] ^= 1; return os.WriteFile(p.Runsc, b, 0o755) },
		"cut off":      func() error { return os.Truncate(p.Runsc, 10) },
		"writable":     func() error { return os.Chmod(p.Runsc, 0o777) },
		"a directory":  func() error { os.Remove(p.Runsc); return os.Mkdir(p.Runsc, 0o755) },
		"another user": func() error { return os.Chown(p.Runsc, 1234, 1234) },
	} {
		if err := damage(); err != nil {
			t.Logf("%s: not tried: %v", name, err)
			continue
		}
		if _, err := c.Unpack(bin); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if now, err := os.ReadFile(p.Runsc); err != nil || !bytes.Equal(now, good) {
			t.Errorf("%s: it was not replaced: %v", name, err)
		}
	}
}

func TestWrongDigestInTheListRefusesTheProgram(t *testing.T) {
	c := carrying(t, true)
	inside := c.Inside.(fstest.MapFS)
	inside["SHA256SUMS"].Data[0] ^= 1
	if inside["SHA256SUMS"].Data[0] > 'f' {
		inside["SHA256SUMS"].Data[0] = '0'
	}
	if _, err := c.Unpack(t.TempDir()); err == nil {
		t.Error("a program was unpacked whose digest is not the listed one")
	}
}

func TestProgramsUnpackedByManyAtOnce(t *testing.T) {
	c, bin := carrying(t, true), t.TempDir()
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			if _, err := c.Unpack(bin); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	entries, err := os.ReadDir(bin)
	if err != nil || len(entries) != 2 {
		t.Errorf("bin has %d entries, want 2: %v", len(entries), err)
	}
}

func TestMissingProgramIsNamedWithTheCommand(t *testing.T) {
	_, err := Carrier{Beside: []string{t.TempDir()}}.Unpack(t.TempDir())
	if err == nil || !bytes.Contains([]byte(err.Error()), []byte("make build")) {
		t.Errorf("error is %v", err)
	}
}
