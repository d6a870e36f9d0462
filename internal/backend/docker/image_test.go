package docker

import (
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/moby/client"
)

// answering is a daemon that has one image, which it describes so.
func answering(t *testing.T, description string) *driver {
	t.Helper()
	path := filepath.Join(t.TempDir(), "docker.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/json") {
			_, _ = io.WriteString(w, description)
		}
	})}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	api, err := client.New(client.WithHost("unix://" + path))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		api.Close()
		s.Close()
		<-served
	})
	return &driver{api: api}
}

// Whoever may name images can give ours to one that has its files and more.
func TestAnImageOfOurNameThatIsAnotherIsNotUsed(t *testing.T) {
	const ours = `"RootFS":{"Type":"layers","Layers":["sha256:aa"]}`
	for name, tc := range map[string]struct {
		description string
		used        bool
	}{
		"as it was loaded":       {`{"Id":"sha256:bb",` + ours + `,"Config":{"User":"","Env":null,"Volumes":null}}`, true},
		"without a description":  {`{"Id":"sha256:bb",` + ours + `}`, true},
		"another layer":          {`{"Id":"sha256:bb","RootFS":{"Type":"layers","Layers":["sha256:cc"]}}`, false},
		"a layer more":           {`{"Id":"sha256:bb","RootFS":{"Type":"layers","Layers":["sha256:aa","sha256:cc"]}}`, false},
		"a check of its health":  {`{"Id":"sha256:bb",` + ours + `,"Config":{"Healthcheck":{"Test":["CMD","/work/x"]}}}`, false},
		"a variable":             {`{"Id":"sha256:bb",` + ours + `,"Config":{"Env":["GODEBUG=x"]}}`, false},
		"a disk without an end":  {`{"Id":"sha256:bb",` + ours + `,"Config":{"Volumes":{"/data":{}}}}`, false},
		"something at its build": {`{"Id":"sha256:bb",` + ours + `,"Config":{"OnBuild":["RUN x"]}}`, false},
	} {
		d := answering(t, tc.description)
		id, err := d.find(deadline(t), loaded{Name: "enclave-sandbox:x", DiffID: "sha256:aa"})
		if used := id == "sha256:bb" && err == nil; used != tc.used || !used && !strings.Contains(err.Error(), "another image") {
			t.Errorf("%s: %q, %v", name, id, err)
		}
	}
}
