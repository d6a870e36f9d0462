package doctor

import (
	"archive/tar"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/all"
	"github.com/enclave-run/enclave/internal/backend/simulator"
	"github.com/enclave-run/enclave/internal/conform"
	"github.com/enclave-run/enclave/internal/egress"
	"github.com/enclave-run/enclave/internal/image"
	"github.com/enclave-run/enclave/internal/posture"
	"github.com/enclave-run/enclave/internal/testenv"
)

func TestVersionsAreJudgedByBranch(t *testing.T) {
	runc := []string{"1.2.8", "1.3.3"}
	for v, want := range map[string]bool{
		"1.1.5": true, "1.1.99": true, "1.2.7": true, "1.2.8": false, "1.2.10": false, "1.3.2": true, "v1.3.3": false,
		"1.4.0": false, "2.0.0": false, "1.3": true, "1.1.5+ds1": true, "1.3.3-rc.1": false,
	} {
		if got, ok := older(v, runc); !ok || got != want {
			t.Errorf("%s has the flaw: %t (%t), want %t", v, got, ok, want)
		}
	}
	for _, v := range []string{"", "unknown", "v", "."} {
		if _, ok := older(v, runc); ok {
			t.Errorf("%q was judged", v)
		}
	}
}

func TestVersionsAreReadFromWhatProgramsSay(t *testing.T) {
	for said, want := range map[string]string{
		"runc version 1.1.5+ds1\ncommit: x\n":                           "1.1.5+ds1",
		"containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20": "1.6.20~ds1",
		"Docker version 28.2.2, build e6534b4":                          "28.2.2",
		"runsc version release-20250319.0\nspec: 1.1.0-rc.1\n":          "20250319.0",
		"Firecracker v1.14.3\n":                                         "1.14.3",
		"QEMU emulator version 7.2.11 (Debian 1:7.2+dfsg-7)":            "7.2.11",
	} {
		if m := versionText.FindStringSubmatch(said); m == nil || m[1] != want {
			t.Errorf("of %q: %q, want %s", said, m, want)
		}
	}
}

func config(t *testing.T, state string) Config {
	t.Helper()
	rooms := 0
	t.Cleanup(func() {
		if rooms != 0 {
			t.Errorf("%d rooms were not removed", rooms)
		}
	})
	return Config{
		State: state, Backends: []string{"simulator"}, Quick: true, Now: time.Now, GatewayUser: 64741,
		Programs: func(string) (string, string, error) { return "", "", errBroken },
		Scratch: func(context.Context) (Room, func(context.Context) error, error) {
			rooms++
			r := Room{t.TempDir(), t.TempDir(), "room"}
			return r, func(context.Context) error { rooms--; return os.RemoveAll(r.Dir) }, nil
		},
		Gateway: func(context.Context) error { return nil },
		AtOnce:  func(string) (int, string, error) { return 7, "memory", nil },
		Table: func() (*egress.Table, error) {
			table, err := egress.Standard()
			return &table, err
		},
		Holder: func() (bool, int, string, string, error) { return false, 0, "", "", nil },
		Dial:   func(context.Context) (net.Conn, error) { return nil, errBroken },
		Images: func() (*image.Store, error) { return nil, os.ErrNotExist },
	}
}

// TestThisHostIsLookedAtInFull looks for real: no fact is left out.
func TestThisHostIsLookedAtInFull(t *testing.T) {
	var all []Finding
	c := config(t, filepath.Join(t.TempDir(), "none"))
	if err := Run(t.Context(), c, func(f Finding) error { all = append(all, f); return nil }); err != nil {
		t.Fatal(err)
	}
	if len(all) < len(checks()) {
		t.Errorf("%d findings of %d checks", len(all), len(checks()))
	}
	for _, f := range all {
		if strings.Contains(f.Detail, errNotLooked.Error()) {
			t.Errorf("%s was not looked at", f.Name)
		}
	}
	if entries, err := os.ReadDir(filepath.Dir(c.State)); err != nil || len(entries) > 0 {
		t.Errorf("looking made %v (%v)", entries, err)
	}
}

func TestAnInterruptEndsTheChecks(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	told := 0
	c := config(t, filepath.Join(t.TempDir(), "none"))
	c.Quick = false
	err := Run(ctx, c, func(f Finding) error {
		if told++; strings.HasPrefix(f.Section, "contract") {
			cancel()
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) || told != len(checks())+1 {
		t.Errorf("after %d findings: %v", told, err)
	}
}

// TestAConfigWithoutAPartIsRefused takes one part away at a time.
func TestAConfigWithoutAPartIsRefused(t *testing.T) {
	for name, spoil := range map[string]func(*Config){
		"state": func(c *Config) { c.State = "" }, "backends": func(c *Config) { c.Backends = nil },
		"unknown backend": func(c *Config) { c.Backends = []string{"wasm"} }, "clock": func(c *Config) { c.Now = nil },
		"programs": func(c *Config) { c.Programs = nil }, "scratch": func(c *Config) { c.Scratch = nil },
		"gateway": func(c *Config) { c.Gateway = nil }, "count of sessions": func(c *Config) { c.AtOnce = nil }, "user": func(c *Config) { c.GatewayUser = 0 },
		"table": func(c *Config) { c.Table = nil }, "holder": func(c *Config) { c.Holder = nil },
		"dial": func(c *Config) { c.Dial = nil }, "images": func(c *Config) { c.Images = nil },
	} {
		c := config(t, "/x")
		spoil(&c)
		if err := Run(t.Context(), c, func(Finding) error { return nil }); err == nil {
			t.Errorf("a config without %s was taken", name)
		}
	}
}

// A lame backend keeps no promise: its sandboxes can't be destroyed.
type lame struct{ backend.Backend }

func (lame) Destroy(context.Context, backend.ID) error { return errBroken }

func TestABrokenContractIsTold(t *testing.T) {
	var all []Finding
	lab := conform.Lab{Backend: lame{simulator.New()}, Image: "sha256:" + strings.Repeat("0", 64)}
	var few []conform.Check
	for _, c := range conform.Checks() {
		if c.Name == "DestroyTwice" || c.Name == "NoHostFiles" {
			few = append(few, c)
		}
	}
	if err := contract(t.Context(), lab, few, func(f Finding) error { all = append(all, f); return nil }); err != nil {
		t.Fatal(err)
	}
	if len(all) != 2 || all[0].Status != Failed || all[0].Do == "" || all[1].Status != NotRun {
		t.Errorf("told %+v", all)
	}
}

// A backend that can't run is a failure where it is the one that is to, and none
// beside another.
func TestABackendThatCantRunIsToldWithWhatToDo(t *testing.T) {
	testenv.Need(t, "root") // every other user is told to be root
	for _, name := range []string{"docker", "qemu", "firecracker"} {
		for want, backends := range map[Status][]string{Failed: {name}, NotRun: {"simulator", name}} {
			c := config(t, filepath.Join(t.TempDir(), "none"))
			c.Backends, c.Quick = backends, false
			c.DockerHost, c.Firecracker, c.Jailer = "unix:///nowhere/docker.sock", "no-firecracker", "no-jailer"
			var last Finding
			tell := func(f Finding) error { last = f; return nil }
			if err := real(t.Context(), c, kind(name), tell); err != nil {
				t.Fatal(err)
			}
			if last.Section != "contract on "+name || last.Status != want || last.Detail == "" || (last.Do == "") != (want == NotRun) {
				t.Errorf("%s of %v: %+v", name, backends, last)
			}
		}
	}
}

// --quick starts no sandbox, and still says of the backend that is to run that it can't.
func TestAQuickLookAsksWhetherTheBackendCanRun(t *testing.T) {
	testenv.Need(t, "root")
	c := config(t, filepath.Join(t.TempDir(), "none"))
	c.DockerHost, c.Firecracker, c.Jailer = "unix:///nowhere/docker.sock", "no-firecracker", "no-jailer"
	for _, name := range []string{"docker", "qemu", "firecracker"} {
		c.Backends, c.Quick = []string{name}, true
		var told []Finding
		if err := contracts(t.Context(), c, func(f Finding) error { told = append(told, f); return nil }); err != nil {
			t.Fatal(err)
		}
		if len(told) != 1 || told[0].Status != Failed || told[0].Detail == "" || told[0].Do == "" {
			t.Errorf("of %s is told %+v", name, told)
		}
	}
}

func TestABackendThatDoesNotOpenIsToldWithWhatToDo(t *testing.T) {
	file := filepath.Join(t.TempDir(), "image.tar")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(f)
	if err := errors.Join(w.WriteHeader(&tar.Header{Name: "bin/", Typeflag: tar.TypeDir, Mode: 0o755}), w.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	images, err := image.Open(t.TempDir())
	if err == nil {
		_, err = images.Import(t.Context(), file, image.Default, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	for want, backends := range map[Status][]string{Failed: {"gvisor"}, NotRun: {"docker", "gvisor"}} {
		c := config(t, t.TempDir())
		c.Backends = backends
		c.Images = func() (*image.Store, error) { return images, nil }
		c.Programs = func(string) (string, string, error) { return "", "", errBroken }
		var told []Finding
		if err := examine(t.Context(), c, all.Default(), func(f Finding) error { told = append(told, f); return nil }); err != nil {
			t.Fatal(err)
		}
		if len(told) != 1 || told[0].Status != want || told[0].Detail != errBroken.Error() || (told[0].Do == "") != (want == NotRun) {
			t.Errorf("of %v is told %+v", backends, told)
		}
	}
}

func TestAnotherPostureIsTold(t *testing.T) {
	for name, tc := range map[string]struct {
		findings []Finding
		want     Status
	}{
		"one that can't be described":            {compare(kind("gvisor"), [2]posture.Description{}, errBroken), Failed},
		"one without facts":                      {compare(kind("gvisor"), [2]posture.Description{}, nil), Failed},
		"a machine that can't be described":      {compare(kind("qemu"), [2]posture.Description{}, errBroken), Failed},
		"one of a program that is not Enclave's": {compare(kind("docker"), [2]posture.Description{}, nil), Warned},
	} {
		for _, f := range tc.findings {
			if f.Status != tc.want || f.Do == "" || f.Detail == "" {
				t.Errorf("%s: %s (%s)", name, f.Status, f.Detail)
			}
		}
		if len(tc.findings) != 2 {
			t.Errorf("%s: %d findings", name, len(tc.findings))
		}
	}
	// One that nobody has described is not looked at, which is no pass.
	var told []Finding
	nobody := posture.Lab{Backend: simulator.New()}
	if err := stance(t.Context(), kind("simulator"), nobody, func(f Finding) error { told = append(told, f); return nil }); err != nil {
		t.Fatal(err)
	}
	if len(told) != 1 || told[0].Status != NotRun || told[0].Detail == "" {
		t.Errorf("of one that nobody has described is told %+v", told)
	}
}

func TestOnlyLoopbackIsLoopback(t *testing.T) {
	for listen, want := range map[string]bool{
		"127.0.0.1:1": true, "localhost:1": true, "[::1]:1": true, "0.0.0.0:1": false, "[::]:1": false, "": false,
		"192.0.2.1:1": false, "127.0.0.1.example.com:1": false, "127.0.0.1": false,
	} {
		if got := loopback(listen); got != want {
			t.Errorf("%q: %t", listen, got)
		}
	}
}

func TestAnOptionIsReadAsTheServerReadIt(t *testing.T) {
	for name, tc := range map[string]struct{ args, env, want string }{
		"none":                     {"enclave\x00serve\x00", "PATH=/bin\x00", ""},
		"of the environment":       {"enclave\x00serve\x00", "PATH=/bin\x00ENCLAVE_F=/a\x00", "/a"},
		"a flag of two words":      {"enclave\x00serve\x00--f\x00/b\x00", "", "/b"},
		"a flag of one":            {"enclave\x00serve\x00--f=/c\x00", "", "/c"},
		"a flag wins":              {"enclave\x00serve\x00--f=/c\x00", "ENCLAVE_F=/a\x00", "/c"},
		"another flag's beginning": {"enclave\x00serve\x00--file=/d\x00", "ENCLAVE_FILE=/a\x00", ""},
	} {
		if got := option(tc.args, tc.env, "f", "ENCLAVE_F"); got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}
