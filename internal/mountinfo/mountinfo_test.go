package mountinfo

import (
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestEveryFieldIsReadAndUnescaped(t *testing.T) {
	const line = `36 35 98:0 /sub\040dir /mnt/a\134b\011c rw,noatime master:1 shared:7 - ext3 /dev/root rw,errors=continue`
	got, err := Parse(line + "\n")
	if err != nil {
		t.Fatal(err)
	}
	want := []Entry{{
		Root: "/sub dir", Point: "/mnt/a\\b\tc", Options: []string{"rw", "noatime"}, Shared: true,
		Type: "ext3", Settings: []string{"rw", "errors=continue"}, Line: line,
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestOneLineThatIsNotUnderstoodRefusesTheTable(t *testing.T) {
	const good = "36 35 98:0 / /mnt rw - ext3 /dev/root rw\n"
	for name, line := range map[string]string{
		"no dash":      "36 35 98:0 / /mnt rw ext3 /dev/root rw\n",
		"cut off":      "36 35 98:0 / /mnt\n",
		"no type":      "36 35 98:0 / /mnt rw - \n",
		"a blank line": "\n",
	} {
		if got, err := Parse(good + line + good); err == nil {
			t.Errorf("%s: read as %+v", name, got)
		}
	}
}

// Blank sources are real: mount -t tmpfs "" /mnt.
func TestAMountWithoutASourceHasItsSettings(t *testing.T) {
	got, err := Parse("36 35 0:5 / /mnt rw - cgroup  rw,pids\n")
	if err != nil || len(got) != 1 || !cmp.Equal(got[0].Settings, []string{"rw", "pids"}) {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestBelowIsTheDirectoryAndWhatIsUnderItDeepestFirst(t *testing.T) {
	var table []Entry
	for _, p := range []string{"/", "/a", "/a/b", "/ab", "/a/b/c", "/x/a"} {
		table = append(table, Entry{Point: p})
	}
	for dir, want := range map[string][]string{
		"/a":    {"/a/b/c", "/a/b", "/a"},
		"/none": nil,
		"/":     {"/a/b/c", "/a/b", "/x/a", "/ab", "/a", "/"},
	} {
		if diff := cmp.Diff(want, Below(table, dir)); diff != "" {
			t.Errorf("%s: -want +got:\n%s", dir, diff)
		}
	}
}

func TestCgroupsAreTheFirstMountOfEachController(t *testing.T) {
	table, err := Parse(`30 25 0:26 / /cg/systemd rw - cgroup cgroup rw,xattr,name=systemd
33 30 0:28 / /cg/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
34 30 0:28 / /again rw - cgroup cgroup rw,cpu,cpuacct
36 30 0:31 / /cg/uni\040fied rw - cgroup2 cgroup2 rw
37 30 0:31 / /dev/shm rw - tmpfs pids rw,pids
`)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"cpu": "/cg/cpu,cpuacct", "cpuacct": "/cg/cpu,cpuacct", "": "/cg/uni fied"}
	if diff := cmp.Diff(want, Cgroups(table)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestTheTableOfThisProcessIsRead(t *testing.T) {
	mine, err := Table()
	if err != nil || len(mine) == 0 {
		t.Fatalf("%d entries, %v", len(mine), err)
	}
	same, err := TableOf(os.Getpid())
	if err != nil || len(same) == 0 {
		t.Errorf("by its id: %d entries, %v", len(same), err)
	}
}
