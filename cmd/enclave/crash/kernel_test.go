package crash

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/enclave-run/enclave/internal/backend/local/cgroup"
	"github.com/enclave-run/enclave/internal/backend/microvm"
	"github.com/enclave-run/enclave/internal/testenv"
)

// A kernel is a real backend as these tests see it: what a site of it needs, and
// where it keeps what it makes.
type kernel struct {
	name   string
	dirs   string // in the state directory: a directory for each sandbox
	groups string // in each hierarchy of control groups: a group for each sandbox

	daemon bool // it needs one
	slow   bool // seconds for a sandbox, of a whole processor

	// prepare starts what the backend needs, for this site alone if apart.
	prepare func(s *site, apart bool)

	// left names what there is of the site's sandboxes that is no directory,
	// group, mount, socket or process.
	left func(s *site) []string

	// foreign makes what looks like the site's, or lies beside it, and is not. It
	// is there as long as survived says so.
	foreign func(s *site) (survived func() error)
}

// kernels are the real backends on which every case of this package holds.
var kernels = map[string]kernel{
	"gvisor": {
		name: "gvisor", dirs: "sandboxes", groups: "enclave",
		prepare: func(*site, bool) {},
		left:    func(*site) []string { return nil },
		foreign: foreignGroup,
	},
	"qemu": {
		name: "qemu", dirs: "machines", groups: microvm.Groups, slow: true,
		prepare: func(s *site, _ bool) { s.linkKernels() },
		left:    func(*site) []string { return nil },
		foreign: foreignGroup,
	},
	"firecracker": {
		name: "firecracker", dirs: "machines", groups: microvm.Groups,
		prepare: func(s *site, _ bool) {
			s.linkKernels()
			firecracker, jailer := testenv.Firecracker(s.t)
			s.env = append(s.env, "ENCLAVE_FIRECRACKER_BIN="+firecracker, "ENCLAVE_JAILER_BIN="+jailer)
		},
		left:    func(*site) []string { return nil },
		foreign: foreignGroup,
	},
	"docker": {
		name: "docker", dirs: "containers", groups: "enclave-docker", daemon: true,
		prepare: func(s *site, apart bool) {
			if !apart {
				s.env = append(s.env, "DOCKER_HOST="+testenv.Docker(s.t))
				return
			}
			s.daemon = testenv.DockerApart(s.t)
			s.env = append(s.env, "DOCKER_HOST="+s.daemon.Host)
		},
		left: containers,
		foreign: func(s *site) func() error {
			group, container := foreignGroup(s), foreignContainer(s)
			return func() error { return errors.Join(group(), container()) }
		},
	},
}

// linkKernels gives the site the tests' guest kernels.
func (s *site) linkKernels() {
	s.t.Helper()
	if err := testenv.Link(testenv.Kernels(s.t), filepath.Join(s.state, "kernels")); err != nil {
		s.t.Fatal(err)
	}
}

// variable is what env has for a name.
func variable(env []string, name string) string {
	v := ""
	for _, e := range env {
		if rest, ok := strings.CutPrefix(e, name+"="); ok {
			v = rest
		}
	}
	return v
}

// containers names the containers of the site's instance, by any of their labels.
func containers(s *site) []string {
	id := s.instance()
	if id == "" {
		return nil
	}
	api, err := client.New(client.WithHost(variable(s.env, "DOCKER_HOST")))
	if err != nil {
		return []string{err.Error()}
	}
	defer api.Close()
	all, err := api.ContainerList(s.t.Context(), client.ContainerListOptions{All: true})
	if err != nil {
		return []string{err.Error()}
	}
	var found []string
	for _, c := range all.Items {
		if words := fmt.Sprint(c.Names, c.Labels); strings.Contains(words, id) {
			found = append(found, "container "+words)
		}
	}
	return found
}

// foreignGroup makes a control group beside those of the site, as another
// installation of the same instance would have.
func foreignGroup(s *site) func() error {
	s.t.Helper()
	tree, err := cgroup.Host()
	if err != nil {
		s.t.Fatal(err)
	}
	g, err := tree.Group(s.kernel.groups, s.instance()+"x-00000000-"+strings.Repeat("0", 20))
	if err != nil {
		s.t.Fatal(err)
	}
	if err := g.Make(cgroup.Limits{Memory: 1 << 20, Pids: 1}); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := g.Remove(); err != nil {
			s.t.Error(err)
		}
	})
	return func() error {
		if there, err := g.Exists(); err != nil || !there {
			return fmt.Errorf("the control group of somebody else is there: %t, %w", there, err)
		}
		return nil
	}
}

// foreignContainer makes a container that has one label of ours, and not the
// mark.
func foreignContainer(s *site) func() error {
	s.t.Helper()
	api, err := client.New(client.WithHost(variable(s.env, "DOCKER_HOST")))
	if err != nil {
		s.t.Fatal(err)
	}
	ctx := context.WithoutCancel(s.t.Context())
	images, err := api.ImageList(ctx, client.ImageListOptions{})
	if err != nil || len(images.Items) == 0 {
		s.t.Fatalf("images %v, %v", images.Items, err)
	}
	made, err := api.ContainerCreate(ctx, client.ContainerCreateOptions{Config: &container.Config{
		Image: images.Items[0].ID, Cmd: []string{"true"},
		Labels: map[string]string{"run.enclave.sandbox": strings.Repeat("0", 20)},
	}})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		_, err := api.ContainerRemove(ctx, made.ID, client.ContainerRemoveOptions{Force: true})
		if err := errors.Join(err, api.Close()); err != nil {
			s.t.Error(err)
		}
	})
	return func() error {
		if _, err := api.ContainerInspect(ctx, made.ID, client.ContainerInspectOptions{}); err != nil {
			return fmt.Errorf("the container of somebody else: %w", err)
		}
		return nil
	}
}

// members are the processes in the control groups of the site.
func (s *site) members() []int {
	s.t.Helper()
	var pids []int
	for _, g := range s.groups() {
		err := filepath.WalkDir(g, func(path string, d fs.DirEntry, err error) error {
			if d != nil && d.Name() == "cgroup.procs" {
				raw, _ := os.ReadFile(path) // a group that has gone has none
				for _, f := range strings.Fields(string(raw)) {
					if pid, err := strconv.Atoi(f); err == nil && !slices.Contains(pids, pid) {
						pids = append(pids, pid)
					}
				}
			}
			return nil
		})
		if err != nil {
			s.t.Fatal(err)
		}
	}
	return pids
}

// removeGroups removes the control groups of the site that have no process.
func (s *site) removeGroups() {
	for _, g := range s.groups() {
		var dirs []string
		_ = filepath.WalkDir(g, func(path string, d fs.DirEntry, _ error) error {
			if d != nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for _, d := range slices.Backward(dirs) {
			_ = os.Remove(d) // one that has a process stays
		}
	}
}

// sandboxes are the directories of the site's sandboxes.
func (s *site) sandboxes() []string {
	entries, err := os.ReadDir(filepath.Join(s.state, s.kernel.dirs))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		s.t.Fatal(err)
	}
	var found []string
	for _, e := range entries {
		if e.IsDir() && strings.HasPrefix(e.Name(), s.instance()+"-") {
			found = append(found, filepath.Join(s.state, s.kernel.dirs, e.Name()))
		}
	}
	return found
}

// first is the process of the host that each of the site's sandboxes began with:
// a kernel in user space, a container's first process, a machine's monitor.
func (s *site) first() []int {
	s.t.Helper()
	var pids []int
	for _, dir := range s.sandboxes() {
		raw, err := os.ReadFile(filepath.Join(dir, "started.json"))
		if errors.Is(err, os.ErrNotExist) {
			continue // it is about to start
		}
		if err != nil {
			s.t.Fatal(err)
		}
		var st struct {
			PID     int
			Process struct{ PID int }
		}
		if err := json.Unmarshal(raw, &st); err != nil {
			s.t.Fatal(err)
		}
		pid := max(st.PID, st.Process.PID)
		if _, err := os.Stat("/proc/" + strconv.Itoa(pid)); err != nil || pid <= 1 {
			s.t.Fatalf("the first process of %s is %d: %v", filepath.Base(dir), pid, err)
		}
		pids = append(pids, pid)
	}
	return pids
}
