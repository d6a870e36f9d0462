package all

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/enclave-run/enclave/internal/backend"
)

// A kind that lacks a part would fail where nobody looks for it.
func TestEveryKindIsComplete(t *testing.T) {
	names, parts := map[string]bool{}, map[string]string{}
	for _, k := range Kinds() {
		if k.Name == "" || names[k.Name] {
			t.Errorf("a kind is called %q, or two are", k.Name)
		}
		names[k.Name] = true
		if k.Footprint == nil || k.available == nil || k.open == nil || k.versions == nil {
			t.Errorf("%s lacks a part", k.Name)
		}
		if k.Executes != (k.Part != "") || k.Executes && k.Mend == "" {
			t.Errorf("%s runs code, and has no directory or no word on what it needs", k.Name)
		}
		// Kinds that share a directory are cleared alike.
		if other, shared := parts[k.Part]; shared && (k.clear == nil) {
			t.Errorf("%s and %s share %s, and each opens its own to clear it", k.Name, other, k.Part)
		}
		parts[k.Part] = k.Name
		if same, err := Named(k.Name); err != nil || same.Name != k.Name {
			t.Errorf("%s is not found by its name: %v", k.Name, err)
		}
	}
	if _, err := Named("auto"); err == nil {
		t.Error("auto is a kind")
	}
}

func TestTheBestIsTheFirstThatCanRunAndIsNoEmulation(t *testing.T) {
	missing := errors.New("missing")
	for name, tc := range map[string]struct {
		can     map[string]backend.Isolation
		want    string
		instead error
	}{
		"all run":                 {map[string]backend.Isolation{"gvisor": backend.UserspaceKernel, "qemu": backend.MicroVM, "docker": backend.SharedKernel}, "gvisor", nil},
		"machines run":            {map[string]backend.Isolation{"firecracker": backend.MicroVM, "qemu": backend.MicroVM, "docker": backend.SharedKernel}, "firecracker", missing},
		"only emulated ones":      {map[string]backend.Isolation{"qemu": backend.Emulated}, "gvisor", nil},
		"emulated ones or docker": {map[string]backend.Isolation{"qemu": backend.Emulated, "docker": backend.SharedKernel}, "docker", missing},
		"none runs":               {nil, "gvisor", nil},
	} {
		able := func(_ context.Context, k Kind) (Able, error) {
			if i, ok := tc.can[k.Name]; ok {
				return Able{Isolation: i}, nil
			}
			return Able{}, missing
		}
		if k, instead := Best(t.Context(), able); k.Name != tc.want || !errors.Is(instead, tc.instead) {
			t.Errorf("%s: %s, instead of what lacks %v", name, k.Name, instead)
		}
		var ran []string
		for _, a := range Ask(t.Context(), able) {
			if a.Err == nil {
				ran = append(ran, a.Kind.Name)
			}
		}
		if len(ran) != len(tc.can) || slices.Contains(ran, Modelled().Name) {
			t.Errorf("%s: asked, %v can run", name, ran)
		}
	}
}

// A daemon elsewhere runs containers that nobody here can measure.
func TestADockerDaemonOfAnotherHostIsRefused(t *testing.T) {
	k, err := Named("docker")
	if err != nil {
		t.Fatal(err)
	}
	for host, ok := range map[string]bool{"unix:///var/run/docker.sock": true, "tcp://10.0.0.1:2375": false, "ssh://u@h": false, "": false, "unix://relative": false} {
		if err := k.Check(Options{DockerHost: host}); (err == nil) != ok {
			t.Errorf("%q: %v", host, err)
		}
	}
}
