package parity

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/enclave-run/enclave/internal/audit"
)

// Certify fills in what c says of its workloads from their sessions' records, and
// returns an error if these do not bear it out: what Check will refuse is not
// signed.
func (c *Certificate) Certify() error {
	keys := c.keys()
	var all [][]Record
	for i := range c.Workloads {
		w := &c.Workloads[i]
		if w.NotRun != "" {
			continue
		}
		var records []Record
		for j := range w.Sessions {
			s := &w.Sessions[j]
			r, report, err := s.open(keys[s.Backend], isPeer(w.Name))
			if err != nil {
				return fmt.Errorf("%s on %s: %w", w.Name, s.Backend, err)
			}
			s.LogSize, s.LogRoot, s.LastHash = report.tree.N, base64.StdEncoding.EncodeToString(report.tree.Hash[:]), report.last
			records = append(records, r)
		}
		if len(records) == 0 {
			return fmt.Errorf("%s has no session", w.Name)
		}
		sum, err := records[0].DataDigest()
		if err != nil {
			return fmt.Errorf("%s: %w", w.Name, err)
		}
		v := records[0].Verdict
		w.RequestSHA256, w.Verdict, w.EventTypes, w.DataSHA256 = digest([]byte(w.Request)), &v, records[0].Types(), sum
		all = append(all, records)
	}
	c.Exceptions = applied(all)
	return c.Check()
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// applied returns the exceptions that were applied to any workload.
func applied(all [][]Record) []Exception {
	used := []Exception{}
	for _, x := range exceptions {
		if slices.ContainsFunc(all, func(records []Record) bool {
			return slices.ContainsFunc(Applied(records), func(a Exception) bool { return a.String() == x.String() })
		}) {
			used = append(used, x)
		}
	}
	return used
}

// isPeer reports whether the workload of a name has a peer.
func isPeer(name string) bool {
	return slices.ContainsFunc(Workloads(), func(w Workload) bool { return w.Name == name && w.Peer })
}

func (c *Certificate) keys() map[string]Backend {
	m := map[string]Backend{}
	for _, b := range c.Backends {
		m[b.Label] = b
	}
	return m
}

// Check reports the first thing that c does not bear out, from its own records
// and this program's list of workloads and exceptions alone. It takes no word of
// c for what it can compute.
func (c *Certificate) Check() error {
	if err := c.checkBackends(); err != nil {
		return err
	}
	list := Workloads()
	if len(c.Workloads) != len(list) {
		return fmt.Errorf("there are %d workloads, and must be %d", len(c.Workloads), len(list))
	}
	var all [][]Record
	logs := map[string]string{}
	for i, w := range list {
		got := c.Workloads[i]
		if got.Name != w.Name || got.Asks != w.Asks {
			return fmt.Errorf("workload %d is %q, and must be %q", i+1, got.Name, w.Name)
		}
		records, err := c.checkWorkload(w, got, logs)
		if err != nil {
			return fmt.Errorf("%s: %w", w.Name, err)
		}
		if len(records) > 0 {
			all = append(all, records)
		}
	}
	want, err := json.Marshal(applied(all))
	if err != nil {
		return fmt.Errorf("encode the exceptions: %w", err)
	}
	got, err := json.Marshal(c.Exceptions)
	if err != nil {
		return fmt.Errorf("encode the exceptions: %w", err)
	}
	if !bytes.Equal(want, got) {
		return fmt.Errorf("the exceptions are %s, and the records show %s", got, want)
	}
	return nil
}

func (c *Certificate) checkBackends() error {
	if c.Mode != Booted && c.Mode != Remote {
		return fmt.Errorf("mode %q shows no parity of kernels", c.Mode)
	}
	if len(c.Backends) < 2 {
		return fmt.Errorf("parity takes two backends, and there are %d", len(c.Backends))
	}
	seen := map[string]bool{}
	for _, b := range c.Backends {
		k, known := kinds[b.Kind]
		switch {
		case b.Label == "" || seen["label "+b.Label]:
			return fmt.Errorf("a backend's label is %q, empty or twice", b.Label)
		case !known || b.Kind == "simulator":
			return fmt.Errorf("backend %s is of kind %q, which runs no code", b.Label, b.Kind)
		case !slices.Contains(k.isolation, b.Isolation):
			return fmt.Errorf("backend %s, of kind %s, says that its isolation is %q", b.Label, b.Kind, b.Isolation)
		case b.LogKey == "" || b.LogKey == b.PeerLogKey || seen["key "+b.LogKey] || seen["key "+b.PeerLogKey]:
			return fmt.Errorf("backend %s has no log of its own: it is another one's control plane", b.Label)
		case (c.Mode == Booted) != (b.PeerLogKey != ""):
			return fmt.Errorf("backend %s in mode %s has the peer's log key %q", b.Label, c.Mode, b.PeerLogKey)
		case c.Mode == Booted && b.Image != c.Backends[0].Image:
			return fmt.Errorf("backend %s has image %s, and %s has %s", b.Label, b.Image, c.Backends[0].Label, c.Backends[0].Image)
		}
		seen["label "+b.Label], seen["key "+b.LogKey] = true, true
		if b.PeerLogKey != "" {
			seen["key "+b.PeerLogKey] = true
		}
	}
	return nil
}

// checkWorkload returns the records of w, one for each backend, that c bears out.
// logs is whose each log is, by its last key: a log whose key was rotated has
// several, and is one control plane's all the same.
func (c *Certificate) checkWorkload(w Workload, got Certificand, logs map[string]string) ([]Record, error) {
	if got.NotRun != "" {
		if !w.Peer || c.Mode == Booted || len(got.Sessions) > 0 || got.Verdict != nil {
			return nil, fmt.Errorf("it was not run: %s", got.NotRun)
		}
		return nil, nil
	}
	request, err := w.Request()
	if err != nil {
		return nil, err
	}
	asked, err := w.Asked()
	if err != nil {
		return nil, err
	}
	switch {
	case got.Request != string(request):
		return nil, errors.New("another request was sent than the one of that name")
	case got.RequestSHA256 != digest(request):
		return nil, errors.New("the SHA-256 is not that of the request")
	case len(got.Sessions) != len(c.Backends):
		return nil, fmt.Errorf("it ran on %d backends of %d", len(got.Sessions), len(c.Backends))
	case got.Verdict == nil:
		return nil, errors.New("it has no verdict")
	}
	var records []Record
	for i, b := range c.Backends {
		s := got.Sessions[i]
		if s.Backend != b.Label {
			return nil, fmt.Errorf("session %d ran on %q, and must have on %q", i+1, s.Backend, b.Label)
		}
		r, report, err := s.open(b, w.Peer)
		if err != nil {
			return nil, fmt.Errorf("on %s: %w", b.Label, err)
		}
		if s.LogSize != report.tree.N || s.LogRoot != base64.StdEncoding.EncodeToString(report.tree.Hash[:]) || s.LastHash != report.last {
			return nil, fmt.Errorf("on %s: the audit head is not the record's", b.Label)
		}
		whose := b.Label
		if w.Peer {
			whose += " with a peer"
		}
		if other, known := logs[report.key]; known && other != whose {
			return nil, fmt.Errorf("on %s: its log is that of %s: it is the same control plane", b.Label, other)
		}
		logs[report.key] = whose
		if !asked.Matches(r.request()) {
			return nil, fmt.Errorf("on %s: the record is of another request", b.Label)
		}
		if report.from.Before(c.Time.Add(-longestRun)) || report.to.After(c.Time.Add(clockSkew)) {
			return nil, fmt.Errorf("on %s: the record is of another run, of %s, or a clock is wrong", b.Label, report.to.Format(time.RFC3339))
		}
		if why, err := w.Judge(r); err != nil || why != "" {
			return nil, errors.Join(fmt.Errorf("on %s: %s", b.Label, why), err)
		}
		records = append(records, r)
		if why, err := Compare(records[0], r); err != nil || why != "" {
			return nil, errors.Join(fmt.Errorf("%s and %s disagree: %s", c.Backends[0].Label, b.Label, why), err)
		}
	}
	return records, got.matches(records[0])
}

// matches reports whether what w says of every backend is what r shows.
func (w Certificand) matches(r Record) error {
	sum, err := r.DataDigest()
	if err != nil {
		return err
	}
	x, err := json.Marshal(w.Verdict)
	if err != nil {
		return fmt.Errorf("encode a verdict: %w", err)
	}
	y, err := json.Marshal(r.Verdict)
	if err != nil {
		return fmt.Errorf("encode a verdict: %w", err)
	}
	switch {
	case !bytes.Equal(x, y):
		return fmt.Errorf("the verdict is said to be %s, and was %s", x, y)
	case !slices.Equal(w.EventTypes, r.Types()):
		return fmt.Errorf("the events are said to be %v, and were %v", w.EventTypes, r.Types())
	case w.DataSHA256 != sum:
		return errors.New("the SHA-256 is not that of the events' data")
	}
	return nil
}

// request returns the hash by which a server names what it was asked.
func (r Record) request() string {
	var d struct{ RequestHash string }
	if len(r.Events) == 0 || json.Unmarshal(r.Events[0].Data, &d) != nil {
		return ""
	}
	return d.RequestHash
}

const (
	// longestRun is more than a run of all workloads may take before Certificate.Time.
	longestRun = time.Hour

	// clockSkew is how far a control plane's clock may be ahead of the driver's.
	clockSkew = 15 * time.Minute
)

// A head is the log that proves a record, and the record's own ends.
type head struct {
	tree struct {
		N    int64
		Hash [sha256.Size]byte
	}
	key      string // that signed it
	last     string
	from, to time.Time
}

// open returns what the record of s shows, once the log of b proves it.
func (s Session) open(b Backend, peer bool) (Record, head, error) {
	var h head
	key := b.LogKey
	if peer {
		key = b.PeerLogKey
	}
	// The file has the record indented; its own form is without white space.
	var file bytes.Buffer
	if err := json.Compact(&file, s.Record); err != nil {
		return Record{}, h, fmt.Errorf("the record: %w", err)
	}
	file.WriteByte('\n')
	bundle, err := audit.ParseBundle(file.Bytes())
	if err != nil {
		return Record{}, h, fmt.Errorf("the record: %w", err)
	}
	report, err := audit.VerifyBundle(bundle, key)
	switch {
	case err != nil:
		return Record{}, h, fmt.Errorf("the record: %w", err)
	case !report.Complete:
		return Record{}, h, fmt.Errorf("the record is not whole: %s", report.Why)
	case report.Session != s.ID:
		return Record{}, h, fmt.Errorf("the record is of session %s, not of %s", report.Session, s.ID)
	}
	h.tree.N, h.tree.Hash, h.last = report.Log.N, report.Log.Hash, bundle.Events[len(bundle.Events)-1].Hash
	h.key, h.from, h.to = report.Key, bundle.Events[0].Time, bundle.Events[len(bundle.Events)-1].Time
	r := Record{Kind: b.Kind, Verdict: s.Verdict}
	for _, e := range bundle.Events {
		if err := s.agrees(b, e); err != nil {
			return Record{}, h, err
		}
		if e.Type == audit.SessionTornDown {
			continue // after the end of what is compared
		}
		data, err := json.Marshal(e.Data)
		if err != nil {
			return Record{}, h, fmt.Errorf("encode the data of %s: %w", e.Type, err)
		}
		r.Events = append(r.Events, Event{string(e.Type), data})
	}
	return r, h, nil
}

// agrees reports whether an event says the same as s and b do.
func (s Session) agrees(b Backend, e audit.Event) error {
	d := e.Data
	switch e.Type {
	case audit.SandboxStarted:
		if d.Backend != b.Kind || d.Isolation != b.Isolation || d.Image != b.Image {
			return fmt.Errorf("the record says that %s, %s ran image %s", d.Backend, d.Isolation, d.Image)
		}
	case audit.ResultCollected:
		if given := d.ResultBytes != nil && *d.ResultBytes > 0; given != (string(s.Verdict.Result) != "null") || d.Truncated != s.Verdict.Truncated {
			return errors.New("the record says something else of the result")
		}
	case audit.WorkloadExited:
		v := s.Verdict
		same := (d.ExitCode == nil) == (v.ExitCode == nil) && (d.ExitCode == nil || *d.ExitCode == *v.ExitCode)
		if d.Outcome != v.Outcome || d.KillReason != v.KillReason || !same {
			return fmt.Errorf("the record says that it %s %s", d.Outcome, d.KillReason)
		}
	}
	return nil
}
