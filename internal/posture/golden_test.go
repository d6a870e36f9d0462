package posture

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/docker"
	"github.com/enclave-run/enclave/internal/backend/gvisor"
	"github.com/enclave-run/enclave/internal/backend/microvm"
	"github.com/enclave-run/enclave/internal/backend/microvm/qemu/qemutest"
	"github.com/enclave-run/enclave/internal/image"
	"github.com/enclave-run/enclave/internal/testenv"
)

var update = flag.Bool("update", false, "rewrite the golden descriptions")

// rounds is how often a sandbox is described before the golden ones are
// rewritten: what is not seen in each of them is "maybe".
const rounds = 5

// backends are those whose sandboxes have golden descriptions.
var backends = map[string]func(t *testing.T, images *image.Store) closer{
	"gvisor": func(t *testing.T, images *image.Store) closer {
		bin := testenv.Binaries(t)
		b, err := gvisor.New(gvisor.Config{Dir: t.TempDir(), Instance: instance(), Runsc: bin.Runsc, Guest: bin.Guest, Rootfs: images.Rootfs})
		if err != nil {
			t.Fatal(err)
		}
		return b
	},
	"qemu": func(t *testing.T, images *image.Store) closer {
		b, err := microvm.New(microvm.Config{
			Dir: t.TempDir(), Instance: instance(), Guest: testenv.Binaries(t).Guest, Disk: images.Disk, Now: time.Now,
			Kernels: testenv.Kernels(t), QEMU: &microvm.QEMU{Shim: qemutest.Shim()},
		})
		if err != nil {
			t.Fatal(err)
		}
		return b
	},
	"docker": func(t *testing.T, images *image.Store) closer {
		b, err := docker.New(docker.Config{Dir: t.TempDir(), Instance: instance(), Host: testenv.Docker(t), Guest: testenv.Binaries(t).Guest, Images: images})
		if err != nil {
			t.Fatal(err)
		}
		return b
	},
}

// TestMain is the monitor of QEMU's machines too.
func TestMain(m *testing.M) {
	qemutest.Main()
	os.Exit(m.Run())
}

type closer interface {
	backend.Backend
	Close() error
}

func instance() string { return fmt.Sprintf("posture-%d", os.Getpid()) }

func lab(t *testing.T, name string) Lab {
	t.Helper()
	testenv.Need(t, name)
	store, digest := testenv.Image(t)
	rootfs, err := store.Rootfs(digest)
	if err != nil {
		t.Fatal(err)
	}
	b := backends[name](t, store)
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return Lab{Backend: b, Image: digest, Rootfs: rootfs}
}

// TestASandboxIsWhatItIsDeclaredToBe compares a live sandbox of each backend with
// its golden description, as the host sees it and from inside, idle and under
// load.
func TestASandboxIsWhatItIsDeclaredToBe(t *testing.T) {
	for name := range backends {
		t.Run(name, func(t *testing.T) {
			l := lab(t, name)
			if *update {
				rewrite(t, l, name)
				return
			}
			d, err := Describe(t.Context(), l)
			if err != nil {
				t.Fatal(err)
			}
			for _, line := range differences(t, name, d) {
				t.Error(line)
			}
		})
	}
}

// differences are those of a description from the golden one.
func differences(t *testing.T, name string, d [2]Description) (all []string) {
	t.Helper()
	host, err := Host(name)
	if err != nil {
		t.Fatal(err)
	}
	within, err := Inside(name)
	if err != nil {
		t.Fatal(err)
	}
	for at, when := range []string{"idle", "busy"} {
		for where, diff := range map[string][]string{
			"host":   host.Diff(Moment(at), d[at].Host),
			"inside": within.Diff(Moment(at), d[at].Inside),
		} {
			for _, line := range diff {
				all = append(all, fmt.Sprintf("%s, %s: %s", where, when, line))
			}
		}
	}
	return all
}

// rewrite makes the golden descriptions anew. What was "maybe" stays so.
func rewrite(t *testing.T, l Lab, backend string) {
	var seen [rounds][2]Description
	for i := range seen {
		var err error
		if seen[i], err = Describe(t.Context(), l); err != nil {
			t.Fatal(err)
		}
	}
	for name, part := range map[string]func(Description) Facts{
		"host":   func(d Description) Facts { return d.Host },
		"inside": func(d Description) Facts { return d.Inside },
	} {
		path := filepath.Join("testdata", backend+"-"+name+".golden")
		old := Golden{map[string]when{}}
		var head []string
		if b, err := os.ReadFile(path); err == nil {
			if old, err = parse(string(b)); err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(string(b)) {
				if strings.HasPrefix(line, "#") {
					head = append(head, line)
				}
			}
		}
		counts := map[string][2]int{}
		for _, round := range seen {
			for at := range round {
				for fact := range part(round[at]) {
					c := counts[fact]
					c[at]++
					counts[fact] = c
				}
			}
		}
		for fact, w := range old.facts {
			if w == maybe && counts[fact] == [2]int{} {
				counts[fact] = [2]int{1, 1}
			}
		}
		var lines []string
		for fact, c := range counts {
			w := maybe
			switch {
			case old.facts[fact] == maybe:
			case c == [2]int{rounds, rounds}:
				w = always
			case c == [2]int{0, rounds}:
				w = busy
			}
			lines = append(lines, fmt.Sprintf("%-6s %s\n", w, fact))
		}
		slices.SortFunc(lines, func(a, b string) int { return strings.Compare(a[7:], b[7:]) })
		if err := os.WriteFile(path, []byte(strings.Join(head, "")+strings.Join(lines, "")), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
