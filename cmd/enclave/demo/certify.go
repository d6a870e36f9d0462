package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/evidence"
	"github.com/enclave-run/enclave/internal/parity"
	"github.com/enclave-run/enclave/internal/terminal"
)

// A Notary is who vouches for a certificate, and what only it knows. All fields
// are required but LogKeys, which is for remote control planes, and Only.
type Notary struct {
	Version string // of this program
	Signer  *audit.Signer
	Host    parity.Host
	LogKeys map[string]string // public keys of the remotes' logs, by label
	// Only, if not empty, names the workloads that run. Then nothing is certified.
	Only []string
}

// A Certified is what a run of Certify came to.
type Certified struct {
	Passed      bool             `json:"passed"`
	Mode        string           `json:"mode"`
	Backends    []parity.Backend `json:"backends"`
	Workloads   []CertifiedRow   `json:"workloads"`
	Failures    []string         `json:"failures"`
	Certificate string           `json:"certificate"` // its file; "" if there is none
	Key         string           `json:"key"`         // that verifies it
}

// A CertifiedRow is what one workload came to.
type CertifiedRow struct {
	Name    string          `json:"name"`
	Verdict *parity.Verdict `json:"verdict"` // null if it was not run
	NotRun  string          `json:"notRun"`
	Failure string          `json:"failure"`
}

// certificateName is the certificate in the evidence directory, without what
// comes behind the dot.
const certificateName = "parity-certificate"

// maxCertify bounds a whole run: a machine under emulation takes some seconds for
// each workload.
const maxCertify = 30 * time.Minute

// errUncertified is what is said of a run that was interrupted.
var errUncertified = errors.New("interrupted: nothing was certified, and what was written before is as it was")

// A certification runs the workloads on every target.
type certification struct {
	Config
	notary  Notary
	screen  *screen
	secrets brokered
	cert    parity.Certificate
	weak    []string // what must be said of backends that are no boundary
	out     Certified
}

// Certify runs every workload of internal/parity on every target and, if each had
// the verdict that it must, the same on all, writes a signed certificate. Else it
// returns a *Failed, and the evidence directory has no certificate. What is shown
// goes to c.Out, and progress to c.Err.
func Certify(ctx context.Context, c Config, n Notary) (_ Certified, err error) {
	ctx, cancel := context.WithTimeout(ctx, maxCertify)
	defer cancel()
	f := &certification{Config: c, notary: n, screen: &screen{w: c.Out, color: c.Color}}
	f.out = Certified{Backends: []parity.Backend{}, Workloads: []CertifiedRow{}, Failures: []string{}, Key: n.Signer.Public()}
	if f.secrets, err = newBrokered(); err != nil {
		return f.out, err
	}
	if err := f.run(ctx); err != nil {
		if errors.Is(ctx.Err(), context.Canceled) && !errors.Is(err, errUncertified) {
			err = errors.Join(errUncertified, err)
		}
		return f.out, err
	}
	if err := f.finish(); err != nil {
		return f.out, err
	}
	if f.screen.err != nil {
		return f.out, f.screen.err
	}
	if !f.out.Passed {
		return f.out, &Failed{f.out.Failures}
	}
	return f.out, nil
}

// CheckWorkloads refuses names that are not of workloads, of which a certificate
// has its own.
func CheckWorkloads(names []string) error {
	var all []string
	for _, w := range parity.Workloads() {
		all = append(all, w.Name)
	}
	for _, name := range names {
		if !slices.Contains(all, name) {
			return fmt.Errorf("%q is not a workload of a certificate: these are: %s", name, strings.Join(all, " "))
		}
	}
	return nil
}

// CheckTargets refuses targets that are too few to compare.
func CheckTargets(c Config) error {
	switch {
	case len(c.Remotes) == 1:
		return errors.New("a certificate takes two control planes: name them in ENCLAVE_PARITY_BASE_URLS (label=url,label=url)")
	case len(c.Remotes) > 1, len(c.Backends) > 1 && !slices.Contains(c.Backends, Modelled):
		return nil
	}
	return fmt.Errorf("a certificate takes two real backends, and this host can run: %s. Give it another, or name control planes in ENCLAVE_PARITY_BASE_URLS; what each lacks: sudo enclave doctor", hostList(c.Backends))
}

// run runs all workloads: those with a peer on control planes of their own.
func (f *certification) run(ctx context.Context) (err error) {
	if err := errors.Join(CheckWorkloads(f.notary.Only), CheckTargets(f.Config)); err != nil {
		return err
	}
	mode, planes, err := f.targets(ctx)
	closeAll := func() error {
		var errs []error
		for _, p := range planes {
			errs = append(errs, p.Close(context.WithoutCancel(ctx)))
		}
		planes = nil
		return errors.Join(errs...)
	}
	defer func() { err = errors.Join(err, closeAll()) }()
	if err != nil {
		return err
	}
	f.cert = parity.Certificate{Version: parity.CertificateVersion, Enclave: f.notary.Version, Host: f.notary.Host, Mode: mode}
	if err := f.meet(ctx, planes); err != nil {
		return err
	}
	list := parity.Workloads()
	wanted := 0
	for _, w := range list {
		if f.wanted(w) {
			wanted++
		}
	}
	f.screen.line(f.screen.paint(terminal.BoldCyan, fmt.Sprintf("▣ Enclave — Parity certificate. %d workloads. %s", wanted, kernelsOf(len(planes)))))
	f.screen.line(terminal.Visible("mode: " + mode + "  ·  backends: " + f.labels()))
	for _, w := range f.weak {
		f.screen.line(f.screen.paint(terminal.Dim, "  "+w))
	}
	f.screen.line()
	f.screen.line("  ", pad("WORKLOAD", labelWidth), " VERDICT")
	f.screen.rule()
	f.cert.Workloads = make([]parity.Certificand, len(list))
	for i, w := range list {
		if w.Peer || !f.wanted(w) {
			continue
		}
		if err := f.workload(ctx, i, w, planes); err != nil {
			return err
		}
	}
	for _, p := range planes {
		more, err := publicSurfaces(ctx, p)
		if err != nil {
			return fmt.Errorf("%s: %w", p.Label, err)
		}
		f.leaks(p.Label, more)
	}
	if mode == bootMulti && slices.ContainsFunc(list, func(w parity.Workload) bool { return w.Peer && f.wanted(w) }) {
		if err := closeAll(); err != nil { // two control planes of a backend are no more work for the host than one
			return err
		}
		host, err := newPeer()
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, host.close()) }()
		for i, b := range f.Backends {
			p, err := host.boot(ctx, &f.Config, b)
			if err != nil {
				return fmt.Errorf("boot %s with a peer: %w", b, err)
			}
			p.Label = f.cert.Backends[i].Label
			f.cert.Backends[i].PeerLogKey = p.Inside.LogKey
			planes = append(planes, p)
		}
	}
	for i, w := range list {
		switch {
		case !w.Peer || !f.wanted(w):
		case mode == bootMulti:
			if err := f.workload(ctx, i, w, planes); err != nil {
				return err
			}
		default:
			why := "a remote control plane can be given no peer to reach"
			f.cert.Workloads[i] = parity.Certificand{Name: w.Name, Asks: w.Asks, NotRun: why}
			f.out.Workloads = append(f.out.Workloads, CertifiedRow{Name: w.Name, NotRun: why})
			f.screen.line("- ", pad(w.Name, labelWidth), " ", f.screen.paint(terminal.Dim, "not run: "+why))
		}
	}
	f.out.Mode = mode
	return nil
}

// wanted reports whether w is to run.
func (f *certification) wanted(w parity.Workload) bool {
	return len(f.notary.Only) == 0 || slices.Contains(f.notary.Only, w.Name)
}

// meet asks each control plane who it is.
func (f *certification) meet(ctx context.Context, planes []*Plane) error {
	for _, p := range planes {
		b := parity.Backend{Label: p.Label, BaseURL: p.BaseURL, TLSFingerprint: p.Fingerprint}
		if p.Inside != nil {
			b.LogKey, b.Versions = p.Inside.LogKey, p.Inside.Versions
			if err := f.secrets.plant(p.Inside.Vault); err != nil {
				return err
			}
		} else if b.LogKey = f.notary.LogKeys[p.Label]; b.LogKey == "" {
			return fmt.Errorf("the key of %s's log is not known, and must not come from its server: run `enclave audit key` on its machine, and give what it prints with --log-key %s=KEY", p.Label, p.Label)
		}
		h, err := p.Client.Health(ctx)
		if err != nil {
			return fmt.Errorf("%s at %s: %w", p.Label, p.BaseURL, err)
		}
		if weak := weakness(h.Isolation); weak != "" {
			f.weak = append(f.weak, p.Label+": "+weak)
		}
		f.cert.Backends = append(f.cert.Backends, b)
	}
	return nil
}

// workload runs w on every plane and says what it came to.
func (f *certification) workload(ctx context.Context, at int, w parity.Workload, planes []*Plane) error {
	body, err := w.Request()
	if err != nil {
		return err
	}
	got := parity.Certificand{Name: w.Name, Asks: w.Asks, Request: string(body)}
	var first parity.Record
	why := ""
	for i, p := range planes {
		fmt.Fprintf(f.Err, "enclave: %s on %s (%d of %d)\n", w.Name, p.Label, at+1, len(f.cert.Workloads))
		s, r, err := f.session(ctx, p, &f.cert.Backends[i], body)
		if errors.Is(ctx.Err(), context.Canceled) {
			return errUncertified
		}
		if err != nil {
			return fmt.Errorf("%s on %s at %s: %w", w.Name, p.Label, p.BaseURL, err)
		}
		got.Sessions = append(got.Sessions, s)
		if i == 0 {
			first = r
		}
		if why == "" {
			if why, err = w.Judge(r); err != nil || why != "" {
				why = p.Label + ": " + errorOr(err, why)
			}
		}
		if why == "" {
			if why, err = parity.Compare(first, r); err != nil || why != "" {
				why = "backends disagreed: " + errorOr(err, why)
			}
		}
	}
	f.cert.Workloads[at] = got
	verdict := got.Sessions[0].Verdict
	f.out.Workloads = append(f.out.Workloads, CertifiedRow{Name: w.Name, Verdict: &verdict, Failure: why})
	if why != "" {
		f.fail(w.Name + ": " + why)
		f.screen.line("✗ ", pad(w.Name, labelWidth), " ", f.screen.paint(terminal.BoldRed, "NO PARITY"), " ", f.screen.paint(terminal.Dim, why))
		return nil
	}
	words := strings.TrimSpace(verdict.Outcome + " " + verdict.KillReason)
	f.screen.line("✓ ", pad(w.Name, labelWidth), " ", f.screen.paint(terminal.BoldGreen, words), " ", f.screen.paint(terminal.Dim, w.Asks))
	return nil
}

func errorOr(err error, why string) string {
	if err != nil {
		return err.Error()
	}
	return why
}

// session runs one workload on p, of which b is what the certificate says.
func (f *certification) session(ctx context.Context, p *Plane, b *parity.Backend, body []byte) (parity.Session, parity.Record, error) {
	s, err := watchBytes(ctx, p, body)
	if err != nil {
		return parity.Session{}, parity.Record{}, err
	}
	for _, e := range s.events {
		if d, err := e.Detail(); err == nil && e.Type == "sandbox_started" && b.Image == "" {
			b.Kind, b.Isolation, b.Image = d.Backend, d.Isolation, d.Image
		}
	}
	record, err := p.Client.Export(ctx, s.session.ID)
	if err != nil {
		return parity.Session{}, parity.Record{}, err
	}
	f.leaks(p.Label, append(s.surfaces, surface{s.session.ID + "'s exported record", record}))
	if _, err := p.Client.Teardown(ctx, s.session.ID); err != nil {
		return parity.Session{}, parity.Record{}, err
	}
	r := s.record()
	if r.Verdict, err = r.Verdict.Canonical(); err != nil {
		return parity.Session{}, parity.Record{}, err
	}
	return parity.Session{Backend: p.Label, ID: s.session.ID, Verdict: r.Verdict, Record: json.RawMessage(record)}, r, nil
}

// leaks fails the certification if a secret is on a public surface.
func (f *certification) leaks(label string, surfaces []surface) {
	if leak := f.secrets.leak(surfaces); leak != "" {
		f.fail(label + ": SECRET LEAKED: " + leak)
	}
}

func (f *certification) fail(why string) { f.out.Failures = append(f.out.Failures, why) }

func (f *certification) labels() string {
	var all []string
	for _, b := range f.cert.Backends {
		all = append(all, b.Label)
	}
	return strings.Join(all, ", ")
}

// finish signs and writes the certificate, or says why there is none.
func (f *certification) finish() error {
	f.cert.Time = f.Now().UTC().Truncate(1e9)
	some := len(f.notary.Only) > 0
	if len(f.out.Failures) == 0 && !some {
		// As who gets it will check it: from the records, and by no word of ours.
		if err := f.cert.Certify(); err != nil {
			f.fail("the certificate does not bear itself out: " + err.Error())
		}
	}
	f.out.Backends = f.cert.Backends
	path := filepath.Join(f.Evidence, certificateName)
	f.screen.rule()
	if len(f.out.Failures) > 0 {
		f.screen.line("✗ ", f.screen.paint(terminal.BoldRed, "no parity: nothing was certified"))
		for _, why := range f.out.Failures {
			f.screen.line("  ", terminal.Visible(why))
		}
		if some {
			return nil
		}
		// One of an earlier run would say what does not hold.
		for _, ext := range []string{".json", ".md"} {
			if err := os.Remove(path + ext); err != nil && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("remove the certificate of an earlier run: %w", err)
			}
		}
		return nil
	}
	if some {
		f.out.Passed = true
		f.screen.line("✓ ", fmt.Sprintf("one verdict on %d backends for each of %d workloads. That is not all of them: nothing was certified.", len(f.cert.Backends), len(f.out.Workloads)))
		return nil
	}
	file, err := f.cert.Encode(f.notary.Signer)
	if err != nil {
		return err
	}
	page := f.markdown()
	if leak := f.secrets.leak([]surface{{"the certificate", file}, {"its page", page}}); leak != "" {
		return &Failed{[]string{"SECRET LEAKED: " + leak}}
	}
	for ext, raw := range map[string][]byte{".json": file, ".md": page} {
		if err := evidence.Write(f.Evidence, certificateName+ext, raw); err != nil {
			return err
		}
	}
	f.out.Passed, f.out.Certificate = true, path+".json"
	ran := 0
	for _, w := range f.cert.Workloads {
		if w.NotRun == "" {
			ran++
		}
	}
	f.screen.line("✓ ", fmt.Sprintf("one verdict on %d backends for each of %d workloads, %d not run; %d declared exceptions were applied.",
		len(f.cert.Backends), ran, len(f.cert.Workloads)-ran, len(f.cert.Exceptions)))
	f.screen.line(terminal.Visible("certificate written to " + path + ".{json,md}"))
	return nil
}

// markdown returns the certificate as a page for people.
func (f *certification) markdown() []byte {
	var b strings.Builder
	c := f.cert
	b.WriteString("# Parity certificate\n\n")
	fmt.Fprintf(&b, "%s · Enclave %s · Linux %s, %s · mode %s. Made from %s.json, which is signed; check that with `enclave parity verify`, not this page.\n\n",
		c.Time.Format("2006-01-02 15:04:05 UTC"), cell(c.Enclave), cell(c.Host.Kernel), cell(c.Host.Arch), cell(c.Mode), certificateName)
	b.WriteString("| Backend | Kind | Isolation | Versions | Image | Log's key |\n|---|---|---|---|---|---|\n")
	for _, x := range c.Backends {
		isolation := x.Isolation
		if weak := weakness(isolation); weak != "" {
			isolation += " (" + weak + ")"
		}
		versions := "not told"
		if len(x.Versions) > 0 {
			var all []string
			for name, v := range x.Versions {
				all = append(all, name+" "+v)
			}
			slices.Sort(all)
			versions = strings.Join(all, ", ")
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s |\n", cell(x.Label), cell(x.Kind), cell(isolation), cell(versions), cell(x.Image), cell(x.LogKey))
	}
	b.WriteString("\n| Workload | | Verdict on all | Request SHA-256 | Data SHA-256 |\n|---|---|---|---|---|\n")
	for _, w := range c.Workloads {
		if w.NotRun != "" {
			fmt.Fprintf(&b, "| %s | %s | not run: %s | | |\n", cell(w.Name), cell(w.Asks), cell(w.NotRun))
			continue
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", cell(w.Name), cell(w.Asks), cell(strings.TrimSpace(w.Verdict.Outcome+" "+w.Verdict.KillReason)), w.RequestSHA256, w.DataSHA256)
	}
	b.WriteString("\nDeclared exceptions that were applied; all else was equal:\n\n")
	for _, x := range c.Exceptions {
		fmt.Fprintf(&b, "- %s: %s\n", cell(x.String()), cell(x.Why))
	}
	return []byte(b.String())
}
