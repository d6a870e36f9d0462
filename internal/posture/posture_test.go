package posture

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/enclave-run/enclave/internal/mountinfo"
)

func TestEveryDifferenceIsSeen(t *testing.T) {
	g, err := parse("# a comment\n\nalways a 1\nbusy   b\nmaybe  c\n")
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		at   Moment
		seen []string
		want []string
	}{
		"nothing more and nothing less":                {Idle, []string{"a 1"}, nil},
		"what may be there is there":                   {Idle, []string{"a 1", "c"}, nil},
		"a fact more":                                  {Idle, []string{"a 1", "d"}, []string{"+ d"}},
		"another value is a fact more and one less":    {Idle, []string{"a 2"}, []string{"- a 1", "+ a 2"}},
		"a fact less":                                  {Idle, nil, []string{"- a 1"}},
		"what only a busy sandbox has, in an idle one": {Idle, []string{"a 1", "b"}, []string{"+ b"}},
		"busy":                           {Busy, []string{"a 1", "b"}, nil},
		"busy without what it must have": {Busy, []string{"a 1"}, []string{"- b"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := Facts{}
			for _, s := range tc.seen {
				f[s] = true
			}
			if diff := cmp.Diff(tc.want, g.Diff(tc.at, f)); diff != "" {
				t.Error(diff)
			}
		})
	}
	if diff := (Golden{}).Diff(Idle, Facts{"a": true}); len(diff) != 1 {
		t.Errorf("the zero Golden allows a fact: %q", diff)
	}
}

func TestAGoldenLineIsUnderstoodOrRefused(t *testing.T) {
	for _, text := range []string{"a 1\n", "sometimes a\n", "always\n", "always \n", "always a\nmaybe a\n"} {
		if _, err := parse(text); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
}

func TestPathsAreNamedByWhatTheyStandFor(t *testing.T) {
	v := &view{id: "abcdefghijklmnopqrst", roots: []string{"/state/images/rootfs/e3", "/images/rootfs/e3"}}
	for path, want := range map[string]string{
		"/state/images/rootfs/e3":                                 "ROOTFS",
		"/state/images/rootfs/e3/etc":                             "ROOTFS/etc",
		"/state/images/rootfs/e34":                                "/state/images/rootfs/e34",
		"/state/sandboxes/i-abcdefghijklmnopqrst/mnt":             "SANDBOX/mnt",
		"/state/sandboxes/i-abcdefghijklmnopqrst":                 "SANDBOX",
		"/state/sandboxes/i-abcdefghijklmnopqrstX/mnt":            "/state/sandboxes/i-IDX/mnt",
		"/images/rootfs/e3/etc":                                   "ROOTFS/etc",
		"/etc/shadow":                                             "/etc/shadow",
		"/state/s/i-abcdefghijklmnopqrst/.x.abcdefghijklmnopqrst": "SANDBOX/.x.ID",
	} {
		if got := v.path(path); got != want {
			t.Errorf("%s is named %s, want %s", path, got, want)
		}
	}
}

func TestAPathIsKnownByItsNameInItsFileSystem(t *testing.T) {
	mounts, err := mountinfo.Parse(`27 1 254:0 / / rw - ext4 /dev/vda rw
28 27 254:1 / /var/lib rw - ext4 /dev/vdb rw
29 28 254:2 /@state /var/lib/enclave rw - btrfs /dev/vdc rw
30 28 254:3 / /var/lib/enclave2 rw - ext4 /dev/vdd rw
`)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"/srv/x": "/srv/x", "/var/lib/other/x": "/other/x", "/var/lib/enclave/images": "/@state/images",
		"/var/lib/enclave2/images": "/images", "/var/lib/enclave3": "/enclave3",
	} {
		if got := inFileSystem(mounts, path); got != want {
			t.Errorf("%s is %s in its file system, want %s", path, got, want)
		}
	}
}
