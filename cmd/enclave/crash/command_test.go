package crash

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// eventually says whether holds does within a time. It is for what nobody
// reports: it asks again and again.
func eventually(within time.Duration, holds func() bool) bool {
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for end := time.After(within); !holds(); {
		select {
		case <-again.C:
		case <-end:
			return holds()
		}
	}
	return true
}

// embedded reaches a failpoint by `enclave run`, which starts a control plane
// in the background.
func embedded(s *site, _ *journal, arm string) *server {
	s.t.Helper()
	out, err := s.command(arm, "run", "--quiet", "-c", "enclave.result(7)").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "enclave:") {
		s.t.Errorf("a run whose control plane failed ended with %v: %s", err, out)
	}
	s.wantReached(arm, out)
	s.wantRun()
	return nil
}

// wantReached checks that a failpoint was reached, by a command or by the control
// plane that it has started.
func (s *site) wantReached(arm string, said []byte) {
	s.t.Helper()
	log, err := os.ReadFile(filepath.Join(s.state, "run", "embedded.log"))
	if err != nil && !os.IsNotExist(err) {
		s.t.Fatal(err)
	}
	name, _, _ := strings.Cut(arm, "=")
	if !bytes.Contains(append(said, log...), []byte("failpoint "+name+" ")) {
		s.t.Fatalf("the failpoint was not reached: %s\n%s", said, log)
	}
}

// wantRun checks that a run succeeds and leaves nothing.
func (s *site) wantRun() {
	s.t.Helper()
	out, err := s.command("", "run", "--quiet", "-c", "enclave.result(7)").CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "7" {
		s.t.Errorf("the next run: %v, %s", err, out)
	}
	s.wantGone()
}

// imports reaches a failpoint by importing an image.
func imports(s *site, _ *journal, arm string) *server {
	s.t.Helper()
	file := filepath.Join(s.dir, "image.tar")
	if err := os.WriteFile(file, smallImage(s), 0o600); err != nil {
		s.t.Fatal(err)
	}
	c := s.command(arm, "image", "import", file, "--name", "small")
	out, err := c.CombinedOutput()
	s.wantReached(arm, out)
	if strings.Contains(arm, "=kill") {
		if st, ok := c.ProcessState.Sys().(syscall.WaitStatus); !ok || st.Signal() != syscall.SIGKILL {
			s.t.Errorf("the import ended with %v: %s", err, out)
		}
	} else if err == nil || !strings.Contains(string(out), "enclave: ") {
		s.t.Errorf("an import that failed ended with %v: %s", err, out)
	}
	// What is half there is not an image, or is one in full.
	if out, err := s.command("", "image", "import", file, "--name", "small").CombinedOutput(); err != nil {
		s.t.Errorf("import it again: %v: %s", err, out)
	}
	out, err = s.command("", "image", "list", "--json").Output()
	if err != nil || strings.Count(string(out), `"small"`) != 1 {
		s.t.Errorf("image list: %v: %s", err, out)
	}
	for _, dir := range []string{"tmp", "rootfs"} {
		entries, err := os.ReadDir(filepath.Join(s.state, "images", dir))
		if want := map[string]int{"tmp": 0, "rootfs": 2}[dir]; err != nil || len(entries) != want {
			s.t.Errorf("images/%s has %v, error %v; want %d entries", dir, entries, err, want)
		}
	}
	return nil
}

// smallImage returns an image as `docker save` writes it.
func smallImage(s *site) []byte {
	s.t.Helper()
	archive := func(files ...[2]string) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, f := range files {
			h := &tar.Header{Name: f[0], Size: int64(len(f[1])), Mode: 0o755, Typeflag: tar.TypeReg}
			if strings.HasSuffix(f[0], "/") {
				h.Typeflag = tar.TypeDir
			}
			if err := w.WriteHeader(h); err != nil {
				s.t.Fatal(err)
			}
			if _, err := w.Write([]byte(f[1])); err != nil {
				s.t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			s.t.Fatal(err)
		}
		return b.Bytes()
	}
	layer := archive([2]string{"bin/", ""}, [2]string{"bin/sh", "#!"}, [2]string{"etc/", ""}, [2]string{"etc/passwd", "root:x:0:0::/:/bin/sh\n"})
	sum := sha256.Sum256(layer)
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux",
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + hex.EncodeToString(sum[:])}},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return archive([2]string{"l/layer.tar", string(layer)}, [2]string{"c.json", string(config)},
		[2]string{"manifest.json", `[{"Config":"c.json","Layers":["l/layer.tar"]}]`})
}
