package parity

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	mrand "math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/enclave-run/enclave/internal/audit"
)

func newSigner(t testing.TB, origin string) *audit.Signer {
	t.Helper()
	private, _, err := audit.GenerateKey(rand.Reader, origin)
	if err != nil {
		t.Fatal(err)
	}
	s, err := audit.NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A plane is a control plane that gives every workload what it must come to.
type plane struct {
	t      testing.TB
	kind   string
	signer *audit.Signer
	hashes []tlog.Hash // of its log, in memory
	n      int64
}

func (p *plane) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, at := range indexes {
		out[i] = p.hashes[at]
	}
	return out, nil
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// run returns the session of w, and its record. change may spoil the events
// before they are sealed.
func (p *plane) run(w Workload, label string, change func([]audit.Event) []audit.Event) Session {
	p.t.Helper()
	about := session(p.kind) // the data of one event of each type
	var limit, started audit.Data
	for data, e := range map[*audit.Data]Event{&started: about.Events[1], &limit: about.Events[3]} {
		if err := json.Unmarshal(e.Data, data); err != nil {
			p.t.Fatal(err)
		}
	}
	v := must(w.want.Canonical())
	s := Session{Backend: label, ID: "s-" + p.kind + "-" + strconv.FormatInt(p.n+1, 10), Verdict: v}
	var events []audit.Event
	add := func(typ audit.Type, d audit.Data) { events = append(events, audit.Event{Type: typ, Data: d}) }
	add(audit.SessionCreated, audit.Data{Caller: "ek_of_" + p.kind, Language: w.request.Language, RequestHash: must(w.Asked()).Hash()})
	add(audit.SandboxStarted, started)
	for _, row := range w.egress {
		f := strings.Fields(row)
		d := audit.Data{Protocol: f[1], Host: f[2], Reason: f[len(f)-2], Count: must(strconv.ParseUint(f[len(f)-1], 10, 64))}
		if len(f) == 6 {
			d.Port = uint16(must(strconv.ParseUint(f[3], 10, 16)))
		}
		add(map[string]audit.Type{"allowed": audit.EgressAllowed, "denied": audit.EgressDenied}[f[0]], d)
	}
	if v.Outcome == "killed" {
		limit.Resource = map[string]string{
			"pids_exceeded": "pidsLimit", "memory_exceeded": "memoryMb", "cpu_exceeded": "cpuSeconds", "disk_exceeded": "diskMb",
			"wall_clock_exceeded": "wallSeconds", "output_exceeded": "outputBytes", "egress_exceeded": "egressBytes",
		}[v.KillReason]
		limit.Evidence = kinds[p.kind].evidence[limit.Resource][0]
		limit.Source = "host"
		if strings.HasPrefix(limit.Evidence, guestEvidence) {
			limit.Source = "guest"
		}
		add(audit.LimitExceeded, limit)
	}
	size := int64(0)
	if string(v.Result) != "null" {
		size = int64(len(v.Result))
	}
	add(audit.ResultCollected, audit.Data{ResultBytes: &size, Truncated: v.Truncated})
	add(audit.WorkloadExited, audit.Data{Outcome: v.Outcome, KillReason: v.KillReason, ExitCode: v.ExitCode})
	var usage audit.Data
	if err := json.Unmarshal(about.Events[6].Data, &usage); err != nil {
		p.t.Fatal(err)
	}
	if v.Outcome != "killed" {
		usage.OutputBytes = new(int64)
	}
	add(audit.UsageMetered, usage)
	if change != nil {
		events = change(events)
	}
	var prev audit.Event
	b := audit.Bundle{Version: audit.BundleVersion, Session: s.ID}
	for i := range events {
		events[i].Session, events[i].Seq, events[i].Time = s.ID, uint64(i+1), time.Unix(int64(i), 0).UTC()
		prev = audit.Seal(prev, events[i])
		b.Events = append(b.Events, prev)
		leaf := must(audit.Leaf(prev))
		p.hashes = append(p.hashes, must(tlog.StoredHashesForRecordHash(p.n, leaf, p))...)
		b.Leaves = append(b.Leaves, audit.LeafAt{Index: p.n})
		p.n++
	}
	b.Checkpoint = string(must(p.signer.Checkpoint(tlog.Tree{N: p.n, Hash: must(tlog.TreeHash(p.n, p))})))
	for i := range b.Leaves {
		b.Leaves[i].Proof = must(tlog.ProveRecord(p.n, b.Leaves[i].Index, p))
	}
	s.Record = bytes.TrimSuffix(must(b.Encode()), []byte("\n"))
	return s
}

// draft returns the certificate of planes of kinds, before Certify. spoil may
// change the events of one workload on the last of them.
func draft(t testing.TB, spoil map[string]func([]audit.Event) []audit.Event, kinds ...string) Certificate {
	t.Helper()
	c := Certificate{Version: 1, Enclave: "test", Time: time.Unix(0, 0).UTC(), Host: Host{"6.1", "amd64"}, Mode: Booted}
	var planes, peers []*plane
	for _, k := range kinds {
		p := &plane{t: t, kind: k, signer: newSigner(t, k+".example/log")}
		peer := &plane{t: t, kind: k, signer: newSigner(t, k+".example/peer")}
		planes, peers = append(planes, p), append(peers, peer)
		var d audit.Data
		if err := json.Unmarshal(session(k).Events[1].Data, &d); err != nil {
			t.Fatal(err)
		}
		c.Backends = append(c.Backends, Backend{
			Label: k, BaseURL: "http://" + k, Kind: k, Isolation: d.Isolation, Image: d.Image,
			Versions: map[string]string{k: "1"}, LogKey: p.signer.Public(), PeerLogKey: peer.signer.Public(),
		})
	}
	for _, w := range Workloads() {
		got := Certificand{Name: w.Name, Asks: w.Asks, Request: string(must(w.Request()))}
		for i, p := range planes {
			if w.Peer {
				p = peers[i]
			}
			var change func([]audit.Event) []audit.Event
			if i == len(planes)-1 {
				change = spoil[w.Name]
			}
			got.Sessions = append(got.Sessions, p.run(w, c.Backends[i].Label, change))
		}
		c.Workloads = append(c.Workloads, got)
	}
	return c
}

func certified(t testing.TB, kinds ...string) Certificate {
	t.Helper()
	c := draft(t, nil, kinds...)
	if err := c.Certify(); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestACertificateIsCheckedByItsKeyAlone(t *testing.T) {
	s := newSigner(t, "driver.example/log")
	c := certified(t, "gvisor", "docker", "qemu")
	file, err := c.Encode(s)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Open(file, s.Public())
	if err != nil {
		t.Fatal(err)
	}
	if err := got.Check(); err != nil {
		t.Fatal(err)
	}
	if again, err := got.Encode(s); err != nil || !bytes.Equal(again, file) {
		t.Errorf("what was opened is written another way: %v", err)
	}
	if _, err := Open(file, newSigner(t, "driver.example/log").Public()); err == nil {
		t.Error("another key opens it")
	}
	if n := len(got.Exceptions); n != len(exceptions) {
		t.Errorf("%d exceptions were applied: %v", n, got.Exceptions)
	}
	if stale := Stale([]string{"gvisor", "docker", "qemu"}, got.Exceptions); len(stale) > 0 {
		t.Errorf("stale: %v", stale)
	}
}

// Every bit of a small certificate, and some of a whole one.
func TestEveryBitFlipInACertificateIsFound(t *testing.T) {
	s := newSigner(t, "driver.example/log")
	flip := func(file []byte, bit int) {
		file[bit/8] ^= 1 << (bit % 8)
		if _, err := Open(file, s.Public()); err == nil {
			t.Errorf("bit %d of byte %d changed, and nobody says so", bit%8, bit/8)
		}
		file[bit/8] ^= 1 << (bit % 8)
	}
	whole := certified(t, "gvisor", "docker")
	small := whole
	small.Workloads = slices.Clone(whole.Workloads[:1])
	small.Workloads[0].Sessions = slices.Clone(small.Workloads[0].Sessions[:1])
	small.Workloads[0].Sessions[0].Record = json.RawMessage(`{"version":1}`)
	small.Exceptions = small.Exceptions[:1]
	file := must(small.Encode(s))
	for bit := range len(file) * 8 {
		flip(file, bit)
	}
	t.Logf("flipped each of %d bits", len(file)*8)
	file = must(whole.Encode(s))
	for range 100 {
		flip(file, mrand.IntN(len(file)*8))
	}
	for _, more := range []string{"\n", " ", "{}"} {
		if _, err := Open(append(bytes.Clone(file), more...), s.Public()); err == nil {
			t.Errorf("%q behind it, and nobody says so", more)
		}
	}
	if _, err := Open(file[:len(file)-1], s.Public()); err == nil {
		t.Error("its last byte is missing, and nobody says so")
	}
}

// A certificate in which two programs could read two things is none, though it is
// signed.
func TestACertificateHasOneReading(t *testing.T) {
	s := newSigner(t, "driver.example/log")
	body := must(json.Marshal(certified(t, "gvisor", "docker")))
	for name, change := range map[string][2]string{
		"as it is":               {``, ``},
		"a field twice":          {`"mode":"boot:multi"`, `"mode":"boot:single","mode":"boot:multi"`},
		"a field in other case":  {`"mode":"boot:multi"`, `"MODE":"boot:multi"`},
		"a field deep in twice":  {`"kind":"docker"`, `"kind":"qemu","kind":"docker"`},
		"a letter written out":   {`"mode":"boot:multi"`, `"mode":"\u0062oot:multi"`},
		"a number written other": {`"version":1,`, `"version":1e0,`},
		"fields in other order":  {`"arch":"amd64"`, `"arch":"amd64","kernel":"6.1"`},
	} {
		signed := bytes.Replace(body, []byte(change[0]), []byte(change[1]), 1)
		file, err := certificateFile{signed, string(must(s.Certify(sha256.Sum256(signed))))}.encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Open(file, s.Public()); (err == nil) != (change[0] == "") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Who has the key can sign anything; what is not borne out is refused all the
// same.
func TestASignatureDoesNotMakeItTrue(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*Certificate)
		want   string
	}{
		"a workload is dropped":  {func(c *Certificate) { c.Workloads = slices.Delete(c.Workloads, 3, 4) }, "workloads, and must be"},
		"a workload is renamed":  {func(c *Certificate) { c.Workloads[3].Name = "clean" }, "and must be"},
		"a workload is repeated": {func(c *Certificate) { c.Workloads[3] = c.Workloads[2] }, "and must be"},
		"a workload was not run": {func(c *Certificate) {
			c.Workloads[3] = Certificand{Name: c.Workloads[3].Name, Asks: c.Workloads[3].Asks, NotRun: "no time"}
		}, "it was not run"},
		"a peer's workload was not run where there was one": {func(c *Certificate) {
			c.Workloads[4] = Certificand{Name: c.Workloads[4].Name, Asks: c.Workloads[4].Asks, NotRun: "no time"}
		}, "it was not run"},
		"a backend is dropped": {func(c *Certificate) { c.Backends = c.Backends[:2] }, "ran on 3 backends of 2"},
		"a backend is dropped with its sessions, to one": {func(c *Certificate) {
			c.Backends = c.Backends[:1]
			for i := range c.Workloads {
				c.Workloads[i].Sessions = c.Workloads[i].Sessions[:1]
			}
		}, "takes two backends"},
		"a session is dropped":     {func(c *Certificate) { c.Workloads[5].Sessions = c.Workloads[5].Sessions[:2] }, "ran on 2 backends of 3"},
		"sessions change places":   {func(c *Certificate) { s := c.Workloads[5].Sessions; s[0], s[1] = s[1], s[0] }, "must have on"},
		"another's record":         {func(c *Certificate) { c.Workloads[5].Sessions[0].Record = c.Workloads[5].Sessions[1].Record }, "the record"},
		"another verdict":          {func(c *Certificate) { c.Workloads[5].Sessions[2].Verdict.KillReason = "cpu_exceeded" }, "the record says"},
		"another result":           {func(c *Certificate) { c.Workloads[0].Sessions[2].Verdict.Result = json.RawMessage("1") }, "and must be"},
		"no result":                {func(c *Certificate) { c.Workloads[0].Sessions[2].Verdict.Result = json.RawMessage("null") }, "of the result"},
		"another verdict for all":  {func(c *Certificate) { c.Workloads[5].Verdict.KillReason = "cpu_exceeded" }, "is said to be"},
		"other events for all":     {func(c *Certificate) { c.Workloads[5].EventTypes = nil }, "are said to be"},
		"another digest of data":   {func(c *Certificate) { c.Workloads[5].DataSHA256 = digest(nil) }, "is not that of the events"},
		"another request":          {func(c *Certificate) { c.Workloads[5].Request = "{}" }, "another request was sent"},
		"another digest of it":     {func(c *Certificate) { c.Workloads[5].RequestSHA256 = digest(nil) }, "not that of the request"},
		"another head":             {func(c *Certificate) { c.Workloads[5].Sessions[1].LogSize++ }, "audit head"},
		"another last hash":        {func(c *Certificate) { c.Workloads[5].Sessions[1].LastHash = digest(nil) }, "audit head"},
		"an exception is hidden":   {func(c *Certificate) { c.Exceptions = c.Exceptions[1:] }, "the exceptions are"},
		"an exception is invented": {func(c *Certificate) { c.Exceptions = append(c.Exceptions, Exception{Type: "x", Field: "y"}) }, "the exceptions are"},
		"a stronger isolation":     {func(c *Certificate) { c.Backends[1].Isolation = "microvm" }, "its isolation"},
		"another kind":             {func(c *Certificate) { c.Backends[1].Kind, c.Backends[1].Isolation = "gvisor", "userspace_kernel" }, "the record says"},
		"a simulator":              {func(c *Certificate) { c.Backends[1].Kind = "simulator" }, "runs no code"},
		"models":                   {func(c *Certificate) { c.Mode = "simulator" }, "no parity of kernels"},
		"another image":            {func(c *Certificate) { c.Backends[1].Image = "sha256:dd" }, "has image"},
		"another log's key":        {func(c *Certificate) { c.Backends[1].LogKey = c.Backends[1].PeerLogKey }, "no log of its own"},
		"a run of another day":     {func(c *Certificate) { c.Time = c.Time.Add(48 * time.Hour) }, "of another run"},
		"a run that is to come":    {func(c *Certificate) { c.Time = c.Time.Add(-48 * time.Hour) }, "of another run"},
		"one control plane twice":  {func(c *Certificate) { c.Backends[1].LogKey = c.Backends[0].LogKey }, "no log of its own"},
		"one label twice":          {func(c *Certificate) { c.Backends[1].Label = c.Backends[0].Label }, "label"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSigner(t, "driver.example/log")
			c := certified(t, "gvisor", "docker", "qemu")
			tc.change(&c)
			file, err := c.Encode(s)
			if err != nil {
				t.Fatal(err)
			}
			got, err := Open(file, s.Public())
			if err != nil {
				t.Fatal(err)
			}
			if err := got.Check(); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error is %v, want %q", err, tc.want)
			}
		})
	}
}

// A record that its log proves, and that is not what the others say.
func TestDisagreementIsNotCertified(t *testing.T) {
	for name, tc := range map[string]struct {
		workload string
		spoil    func([]audit.Event) []audit.Event
		want     string
	}{
		"a denial less": {"credentials", func(e []audit.Event) []audit.Event { return slices.Delete(e, 2, 3) }, "on record is"},
		"no denial":     {"credentials", func(e []audit.Event) []audit.Event { return slices.Delete(e, 2, 4) }, "is not on record"},
		"one more": {"clean", func(e []audit.Event) []audit.Event {
			return slices.Insert(e, 2, audit.Event{Type: audit.EgressAllowed})
		}, "must not be"},
		"another policy": {"clean", func(e []audit.Event) []audit.Event {
			e[0].Data.PolicyDigest = "bb"
			return e
		}, "policyDigest"},
		"another image": {"clean", func(e []audit.Event) []audit.Event {
			e[1].Data.Image = "sha256:dd"
			return e
		}, "ran image"},
		"another outcome": {"clean", func(e []audit.Event) []audit.Event {
			e[3].Data.Outcome = "failed"
			return e
		}, "the record says"},
		"more output": {"clean", func(e []audit.Event) []audit.Event {
			*e[4].Data.OutputBytes = 9
			return e
		}, "outputBytes"},
		"a record without its end": {"clean", func(e []audit.Event) []audit.Event { return e[:4] }, "not whole"},
	} {
		t.Run(name, func(t *testing.T) {
			c := draft(t, map[string]func([]audit.Event) []audit.Event{tc.workload: tc.spoil}, "gvisor", "docker")
			if err := c.Certify(); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error is %v, want %q", err, tc.want)
			}
		})
	}
}

// To control planes of others no peer can be given. That is said, and nothing
// else may be left out.
func TestRemoteControlPlanesAreCertifiedWithoutAPeer(t *testing.T) {
	c := draft(t, nil, "gvisor", "docker")
	c.Mode = Remote
	for i := range c.Backends {
		c.Backends[i].PeerLogKey = ""
		c.Backends[i].Versions = nil
	}
	for i, w := range Workloads() {
		if w.Peer {
			c.Workloads[i] = Certificand{Name: w.Name, Asks: w.Asks, NotRun: "no peer"}
		}
	}
	if err := c.Certify(); err != nil {
		t.Fatal(err)
	}
	c.Workloads[0] = Certificand{Name: c.Workloads[0].Name, Asks: c.Workloads[0].Asks, NotRun: "no time"}
	if err := c.Check(); err == nil || !strings.Contains(err.Error(), "was not run") {
		t.Errorf("error is %v", err)
	}
}

// A workload whose sessions are those of another, everywhere, was not run; nor was
// one of two that are shown for each other.
func TestOneRecordStandsForOneRequest(t *testing.T) {
	for name, spoil := range map[string]func(bomb, threads *Certificand){
		"one for two":    func(bomb, threads *Certificand) { threads.Sessions = slices.Clone(bomb.Sessions) },
		"for each other": func(bomb, threads *Certificand) { bomb.Sessions, threads.Sessions = threads.Sessions, bomb.Sessions },
	} {
		c := draft(t, nil, "gvisor", "docker")
		at := func(name string) *Certificand {
			return &c.Workloads[slices.IndexFunc(c.Workloads, func(w Certificand) bool { return w.Name == name })]
		}
		spoil(at("limit-pids"), at("limit-threads"))
		if err := c.Certify(); err == nil || !strings.Contains(err.Error(), "of another request") {
			t.Errorf("%s: error is %v", name, err)
		}
	}
}

// A log goes on under another key, and is no second control plane by that.
func TestOneControlPlaneIsNotTwoByItsKeys(t *testing.T) {
	c := draft(t, nil, "gvisor", "gvisor")
	old, next := newSigner(t, "gvisor.example/log"), newSigner(t, "gvisor.example/log")
	rotation := audit.Seal(audit.Event{}, audit.Event{Session: audit.LogRecord, Seq: 1, Time: time.Unix(0, 0).UTC(), Type: audit.KeyRotated, Data: must(old.Rotate(next))})
	p := &plane{t: t, kind: "gvisor", signer: next}
	p.hashes = must(tlog.StoredHashesForRecordHash(0, must(audit.Leaf(rotation)), p))
	p.n = 1
	for i, label := range []string{"a", "b"} {
		c.Backends[i].Label, c.Backends[i].LogKey, c.Backends[i].PeerLogKey, c.Backends[i].Versions = label, []string{old.Public(), next.Public()}[i], "", nil
	}
	c.Mode = Remote
	for i, w := range Workloads() {
		if w.Peer {
			c.Workloads[i] = Certificand{Name: w.Name, Asks: w.Asks, NotRun: "no peer"}
			continue
		}
		for j, b := range c.Backends {
			s := p.run(w, b.Label, nil)
			bundle := must(audit.ParseBundle(append(s.Record, '\n')))
			bundle.Rotations = []audit.Rotation{{Event: rotation, Leaf: audit.LeafAt{Proof: must(tlog.ProveRecord(p.n, 0, p))}}}
			s.Record = bytes.TrimSuffix(must(bundle.Encode()), []byte("\n"))
			c.Workloads[i].Sessions[j] = s
		}
	}
	if err := c.Certify(); err == nil || !strings.Contains(err.Error(), "its log is that of a") {
		t.Errorf("error is %v", err)
	}
}

func TestWorkloadsAreAList(t *testing.T) {
	seen := map[string]bool{}
	reasons := map[string]bool{}
	for _, w := range Workloads() {
		raw, err := w.Request()
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range []string{w.Name, w.Asks, fmt.Sprintf("%x", sha256.Sum256(raw))} {
			if seen[k] || k == "" {
				t.Errorf("%q is there twice, or empty", k)
			}
			seen[k] = true
		}
		reasons[w.want.KillReason] = true
	}
	for _, r := range []string{"pids_exceeded", "memory_exceeded", "cpu_exceeded", "wall_clock_exceeded", "disk_exceeded", "output_exceeded", "egress_exceeded"} {
		if !reasons[r] {
			t.Errorf("no workload ends as %s", r)
		}
	}
}

// No bytes but those that Encode made are a certificate of a key.
func FuzzOpenCertificate(f *testing.F) {
	s := newSigner(f, "driver.example/log")
	c := certified(f, "gvisor", "docker")
	c.Workloads = c.Workloads[:1]
	c.Workloads[0].Sessions = c.Workloads[0].Sessions[:1]
	file := must(c.Encode(s))
	f.Add(file)
	f.Add([]byte(`{"certificate": {}, "signature": ""}`))
	f.Add([]byte("{\n  \"certificate\": null,\n  \"signature\": \"\"\n}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, err := Open(data, s.Public()); (err == nil) != bytes.Equal(data, file) {
			t.Errorf("opened: %v; it is the file that was signed: %v", err == nil, bytes.Equal(data, file))
		}
	})
}
