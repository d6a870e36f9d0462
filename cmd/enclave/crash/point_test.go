package crash

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// A point says how a failpoint is reached, and what lies there.
type point struct {
	place   string // after, or before, what
	backend string // "" is the simulator; "gvisor docker" is each of the two
	way     way    // nil is sessions, or machines where a sandbox takes seconds
	nth     string // "@3": the third time; "" is the first
}

// points has every failpoint of the program.
var points = map[string]point{
	"state.make.empty":           {place: "the state directory exists, its mark does not"},
	"state.make.marked":          {place: "the mark exists, the parts of the directory do not"},
	"state.lock.taken":           {place: "the lock is taken, its holder is not named"},
	"store.open.created":         {place: "the database is an empty file"},
	"store.schema.made":          {place: "the database has its tables, and they are not durable"},
	"store.open.prepared":        {place: "the database is durable, nobody reads it"},
	"signer.make.public":         {place: "the public key of the log is written, the private one is not"},
	"signer.make.private":        {place: "both keys of the log are written"},
	"gateway.spawn.started":      {place: "the gateway process runs, and has no settings"},
	"serve.socket.listening":     {place: "the socket listens, nobody answers"},
	"serve.lease.taken":          {place: "a client holds the control plane, and is not told", way: embedded},
	"image.publish.placed":       {place: "an image's blobs are in place, its name is not", way: imports},
	"image.publish.named":        {place: "an image is named, what it replaces is not collected", way: imports},
	"image.unpack.applied":       {place: "an image's layers are unpacked beside its place", way: imports},
	"image.unpack.renamed":       {place: "an image's tree is in its place, without its mark", way: imports},
	"control.create.numbered":    {place: "a session has a number"},
	"control.create.admitted":    {place: "a session is known, and not durable"},
	"store.commit.written":       {place: "a transaction is written, and not committed", nth: "@6"},
	"store.commit.durable":       {place: "a transaction is committed, and not acknowledged", nth: "@6"},
	"control.create.committed":   {place: "a session is durable, and nobody leads it"},
	"httpapi.create.answering":   {place: "a session is led, and its client is not told"},
	"control.queue.admitted":     {place: "a session has its turn, and no sandbox", nth: "@2"},
	"sandbox.open.begun":         {place: "a sandbox is about to be made", nth: "@2"},
	"sandbox.open.listening":     {place: "the way out of a sandbox listens", nth: "@2"},
	"sandbox.open.started":       {place: "a sandbox is started, nobody waits for its end", nth: "@2"},
	"sandbox.open.connected":     {place: "a guest has connected", nth: "@2"},
	"gateway.serve.handed":       {place: "the gateway process has a sandbox's packets", nth: "@2"},
	"control.begin.hello":        {place: "a guest has said hello, its session is pending", nth: "@2"},
	"control.begin.committed":    {place: "a session is durably running, its code is not sent", nth: "@2"},
	"control.work.files":         {place: "a session's files are written", nth: "@2"},
	"control.work.started":       {place: "the workload is started", nth: "@2"},
	"control.work.ended":         {place: "the workload has ended, nothing of it is recorded"},
	"control.limit.recorded":     {place: "a limit is recorded, the sandbox is not destroyed"},
	"control.end.collected":      {place: "the result is collected, and not durable"},
	"control.end.committed":      {place: "the end is durable, nobody is told, the sandbox exists"},
	"control.destroy.begun":      {place: "the end is told, the sandbox exists"},
	"control.destroy.done":       {place: "the sandbox is destroyed, its place is not free"},
	"control.teardown.ended":     {place: "a session that is torn down has ended"},
	"control.teardown.committed": {place: "the teardown is durable, its client is not told"},
	"control.retain.committed":   {place: "a session is torn down for its age, and not counted", way: retains},
	"store.sequence.added":       {place: "events are added to the log, which is not signed", nth: "@2"},
	"store.sequence.signed":      {place: "the log is signed, and not durable", nth: "@2"},
	"store.sequence.durable":     {place: "a checkpoint is durable, and not published", nth: "@2"},

	"enclave.rotate.kept":      {place: "a new key of the log is kept, nothing is signed with it", way: rotates},
	"store.rotate.extended":    {place: "a rotation of the log's key is written, and not committed", way: rotates},
	"enclave.rotate.logged":    {place: "a rotation is durable, the old key is in its place", way: rotates},
	"enclave.rotate.announced": {place: "a new public key is written, the old private one is in its place", way: rotates},
	"enclave.rotate.adopted":   {place: "a new key is in its place, the old one's bytes are not overwritten", way: rotates},

	"control.recover.read":      {place: "a start has read what should exist", way: restarts},
	"control.recover.cleared":   {place: "a start has destroyed what should not exist", way: restarts},
	"control.recover.ended":     {place: "a start has ended a session that was running", way: restarts},
	"control.recover.resumed":   {place: "a start leads a session that was pending", way: restarts},
	"control.recover.destroyed": {place: "a start has destroyed the first of several sandboxes", way: restarts, backend: "gvisor"},

	"docker.listen.bound":        {place: "a container's socket exists, not yet of its root alone", backend: "docker"},
	"docker.image.loaded":        {place: "the daemon has the image, and it is not recorded", backend: "docker"},
	"docker.start.placed":        {place: "the guest's program is in its place", backend: "docker"},
	"docker.start.sealed":        {place: "the socket's directory is mounted read-only", backend: "docker"},
	"docker.start.grouped":       {place: "a sandbox has its control groups, and no container", backend: "docker"},
	"docker.start.created":       {place: "a container exists, and has not been started", backend: "docker"},
	"docker.start.ran":           {place: "a container runs, and is not recorded", backend: "docker"},
	"docker.start.limited":       {place: "a container runs within its share, and is not recorded", backend: "docker"},
	"docker.destroy.uncontained": {place: "a container is removed, its mount and groups are not", backend: "docker"},
	"microvm.start.filled":       {place: "a machine's files are in its root directory", backend: "qemu"},
	"microvm.start.grouped":      {place: "a machine has its control groups, and no monitor", backend: "qemu"},
	"microvm.start.launched":     {place: "a machine's monitor serves, and has no machine", backend: "qemu"},
	"microvm.boot.begun":         {place: "a machine boots, and has not been heard", backend: "qemu"},
	"microvm.start.booted":       {place: "a guest has set its machine up, its monitor is not recorded", backend: "qemu"},
	"microvm.start.limited":      {place: "a machine runs within its share, and is not recorded", backend: "qemu"},
	"local.listen.made":          {place: "a sandbox has a directory", backend: "gvisor docker qemu"},
	"gvisor.listen.bound":        {place: "a sandbox's socket exists, of another owner than its own", backend: "gvisor"},
	"local.start.announced":      {place: "a sandbox's facts are written, nothing else is there", backend: "gvisor docker qemu"},
	"gvisor.start.placed":        {place: "the guest's program is in its place", backend: "gvisor"},
	"gvisor.start.described":     {place: "a sandbox's description is written", backend: "gvisor"},
	"cgroup.make.partly":         {place: "a sandbox has a control group in one hierarchy of several", backend: "gvisor"},
	"gvisor.start.grouped":       {place: "a sandbox has its control groups, and no process", backend: "gvisor"},
	"gvisor.start.ran":           {place: "a sandbox runs, its process is not known", backend: "gvisor"},
	"gvisor.start.limited":       {place: "a sandbox runs within its share, its process is not recorded", backend: "gvisor"},
	"local.start.recorded":       {place: "a sandbox is recorded, nobody watches it", backend: "gvisor docker qemu"},
	"local.exit.settled":         {place: "a sandbox has ended, how is not recorded", backend: "gvisor docker qemu"},
	"local.destroy.marked":       {place: "a sandbox is marked to be destroyed", backend: "gvisor docker qemu"},
	"local.destroy.killed":       {place: "a sandbox's processes are killed", backend: "gvisor docker qemu"},
	"local.destroy.cleared":      {place: "what a sandbox has outside its directory and groups is removed", backend: "gvisor docker qemu"},
	"local.destroy.ungrouped":    {place: "a sandbox's control groups are removed", backend: "gvisor docker qemu"},
	"local.destroy.removed":      {place: "a sandbox's directory is removed", backend: "gvisor docker qemu"},
}

// inSource returns how often each failpoint is named in the program's source,
// tests aside.
func inSource(t testing.TB) map[string]int {
	t.Helper()
	found := map[string]int{}
	root := os.DirFS("../../..")
	err := fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && name != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "bin" || d.Name() == "testdata"):
			return fs.SkipDir
		case d.IsDir() || path.Ext(name) != ".go" || strings.HasSuffix(name, "_test.go"):
			return nil
		}
		src, err := fs.ReadFile(root, name)
		if err != nil {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, src, 0)
		if err != nil {
			return err
		}
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			sel, ok := call.Fun.(*ast.SelectorExpr)
			if !ok || sel.Sel.Name != "Hit" {
				return true
			}
			if pkg, ok := sel.X.(*ast.Ident); !ok || pkg.Name != "failpoint" {
				return true
			}
			lit, ok := call.Args[0].(*ast.BasicLit)
			if !ok || lit.Kind != token.STRING {
				t.Errorf("%s: a failpoint's name is not written out", name)
				return true
			}
			p, err := strconv.Unquote(lit.Value)
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			found[p]++
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestEveryFailpointIsInTheTableOnce(t *testing.T) {
	t.Parallel()
	found := inSource(t)
	if len(found) < 30 {
		t.Errorf("only %d failpoints were found: the walk is broken", len(found))
	}
	for name, n := range found {
		if _, ok := points[name]; !ok {
			t.Errorf("failpoint %s is not in the table: no test hits it", name)
		}
		// Recovery is one promise whether a start or the reconciler keeps it, and a
		// name says one place.
		if n > 1 {
			t.Errorf("failpoint %s is at %d places: a test can't tell which it hits", name, n)
		}
		if strings.Count(name, ".") != 2 {
			t.Errorf("failpoint %s is not called package.operation.place", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(points)) {
		if found[name] == 0 {
			t.Errorf("failpoint %s is in the table and not in the source", name)
		}
		if points[name].place == "" {
			t.Errorf("failpoint %s says nothing of its place", name)
		}
	}
}
