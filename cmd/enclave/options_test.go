package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/enclave-run/enclave/internal/backend/all"
	"github.com/enclave-run/enclave/internal/statedir"
	"github.com/google/go-cmp/cmp"
)

func TestForeignDirectoryIsNeverRemoved(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "thesis.tex"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	p := newProgram()
	p.opts.State = dir
	if err := p.uninstall(t.Context(), true); !errors.Is(err, statedir.ErrNone) {
		t.Errorf("uninstall of a directory of files: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "thesis.tex")); err != nil {
		t.Error(err)
	}
}

func TestOptionsAreReadFromTheEnvironmentAndChecked(t *testing.T) {
	env := map[string]string{"ENCLAVE_STATE": "/srv/e", "ENCLAVE_BACKEND": "simulator", "ENCLAVE_LISTEN": "127.0.0.1:1", "ENCLAVE_API_KEY": "k", "DOCKER_HOST": "unix:///d", "ENCLAVE_QEMU": "/q", "ENCLAVE_JAILER_BIN": "/j"}
	got := defaults(func(k string) string { return env[k] })
	want := options{State: "/srv/e", Backend: "simulator", Programs: all.Options{DockerHost: "unix:///d", QEMU: "/q", Firecracker: "firecracker", Jailer: "/j"}, Serve: got.Serve, APIKey: "k"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if got.Serve.Listen != "127.0.0.1:1" {
		t.Errorf("listen is %q", got.Serve.Listen)
	}
	got = defaults(func(string) string { return "" })
	if err := errors.Join(got.validate(), got.Serve.validate()); err != nil {
		t.Errorf("the defaults are refused: %v", err)
	}
	for name, o := range map[string]options{
		"no state":       {State: " ", Backend: "auto"},
		"odd backend":    {State: "/srv/e", Backend: "docker"},
		"no URL":         {State: "/srv/e", Backend: "auto", BaseURL: "localhost:8090"},
		"another scheme": {State: "/srv/e", Backend: "auto", BaseURL: "ftp://localhost"},
	} {
		if err := o.validate(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for _, listen := range []string{"", ":8090", "0.0.0.0:8090", "[::]:8090", "192.0.2.1:8090", "example.com:80", "127.0.0.1", "127.0.0.1:"} {
		if err := (&serveOptions{Listen: listen}).validate(); err == nil {
			t.Errorf("--listen %q: accepted", listen)
		}
	}
}
