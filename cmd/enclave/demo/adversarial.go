package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/enclave-run/enclave/internal/terminal"
)

// Failed is what a demo returns if a check failed. Its report says which.
type Failed struct{ Failures []string }

func (f *Failed) Error() string {
	return fmt.Sprintf("%d checks failed: %s", len(f.Failures), strings.Join(f.Failures, "; "))
}

// adversarial is one run of the demo.
type adversarial struct {
	Config
	canary    canaries
	secrets   brokered
	hostLines []string // of the host's /etc/shadow, which the image does not have
	controls  controls
	screen    *screen
	shown     *Record // what was written to Out
}

// maxDemo bounds a demo as a whole. It is no claim about speed: it ends a hang.
const maxDemo = 10 * time.Minute

// Adversarial runs five workloads, four of them hostile, each in a session of
// its own, and returns a *Failed unless all are contained, the clean one gives
// its answer and no secret is anywhere public.
func Adversarial(ctx context.Context, c Config) (err error) {
	ctx, cancel := context.WithTimeout(ctx, maxDemo)
	defer cancel()
	d := &adversarial{Config: c, shown: &Record{}}
	d.screen = &screen{w: io.MultiWriter(c.Out, d.shown), color: c.Color}
	if d.secrets, err = newBrokered(); err != nil {
		return err
	}
	remove, err := d.plantOnHost()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()

	p, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Close(context.WithoutCancel(ctx))) }()
	return d.run(ctx, p)
}

// plantOnHost makes the canaries, and puts one into a new file of this host
// that everyone may read.
func (d *adversarial) plantOnHost() (remove func() error, err error) {
	dir, err := os.MkdirTemp(d.Temp, "canary-")
	if err != nil {
		return nil, fmt.Errorf("plant a canary on the host: %w", err)
	}
	remove = func() error { return os.RemoveAll(dir) }
	d.canary = canaries{
		mark: "attempt-" + random(), file: "stolen-" + random(), host: "host-" + random(),
		jwt: d.secrets.jwt, opaque: d.secrets.opaque, hostPath: filepath.Join(dir, "canary"),
	}
	err = errors.Join(os.Chmod(dir, 0o755), os.WriteFile(d.canary.hostPath, []byte(d.canary.host+"\n"), 0o644))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("plant a canary on the host: %w", err), remove())
	}
	return remove, nil
}

var errInterrupted = errors.New("interrupted: the demo is incomplete, and wrote no evidence")

func (d *adversarial) run(ctx context.Context, p *Plane) error {
	health, err := p.Client.Health(ctx)
	if err != nil {
		return fmt.Errorf("ask %s what it is: %w", p.BaseURL, err)
	}
	if !health.Ready {
		return fmt.Errorf("the control plane at %s is not ready: %s", p.BaseURL, health.Reason)
	}
	if p.Inside == nil {
		d.controls = notRun("the control plane is not this process's own")
	} else {
		if err := d.secrets.plant(p.Inside.Vault); err != nil {
			return err
		}
		if d.hostLines, err = hostOnly("/etc/shadow", p.Inside.Rootfs); err != nil {
			return err
		}
		fmt.Fprintln(d.Err, "enclave: the attempts once more first, allowed: they must get through")
		if d.controls, err = d.prove(ctx, health.Backend); err != nil {
			return err
		}
		d.controls.secret = proof{run: true, detail: "the scanner finds both canaries, in the clear and in base64"}
	}
	d.screen.banner(p.BaseURL, health.Backend, mode(health))

	r := report{
		Summary: summary{Backend: health.Backend, Mode: mode(health), BaseURL: p.BaseURL, Fingerprint: p.Fingerprint, Checks: 6, Failures: []string{}},
		Rows:    []row{},
	}
	var public []surface
	var ids []string
	for _, sc := range d.scenarios() {
		s, err := watch(ctx, p, sc.request)
		if errors.Is(ctx.Err(), context.Canceled) {
			return errInterrupted // what was not judged neither passed nor failed
		}
		if err != nil {
			v := fail("%v", err)
			d.show(sc, v)
			r.add(newRow(sc, nil, v))
			continue
		}
		v := sc.judge(s)
		d.show(sc, v)
		r.add(newRow(sc, &s, v))
		public = append(public, s.surfaces...)
		ids = append(ids, s.session.ID)
	}
	slices.Sort(ids)
	if n := len(slices.Compact(slices.Clone(ids))); n != len(ids) {
		r.Summary.Failures = append(r.Summary.Failures, "two workloads shared a session")
	}
	return d.finish(ctx, p, r, public, ids)
}

// finish judges the secret, writes the evidence and tears the sessions down.
func (d *adversarial) finish(ctx context.Context, p *Plane, r report, public []surface, ids []string) error {
	more, err := publicSurfaces(ctx, p)
	if err != nil {
		return err
	}
	public = append(public, more...)
	v := d.withheld(public)
	r.Summary.SecretWithheld = v.passed
	if !v.passed {
		r.Summary.Failures = append(r.Summary.Failures, secretLabel+": "+v.reason)
	}
	r.Summary.Passed = len(r.Summary.Failures) == 0
	r.Summary.Controls = map[string]string{
		exfilLabel: d.controls.exfil.String(), metadataLabel: d.controls.metadata.String(), forkLabel: d.controls.fork.String(),
		shadowLabel: d.controls.shadow.String(), secretLabel: d.controls.secret.String(),
	}
	written, err := d.writeEvidence("adversarial", r, r.markdown())
	if err != nil {
		return err
	}
	// What was written and shown is public too. A report that leaks is not kept.
	if leak := d.secrets.leak(append(written, surface{"the demo's own output", d.shown.Bytes()})); leak != "" && v.passed {
		for _, w := range written {
			err = errors.Join(err, os.Remove(w.name))
		}
		v, r.Summary.SecretWithheld, r.Summary.Passed = fail("%s", leak), false, false
		r.Summary.Failures = append(r.Summary.Failures, secretLabel+": "+leak)
	}
	d.screen.rule()
	d.screen.check(secretLabel, v, "WITHHELD", "LEAKED", terminal.BoldGreen)
	d.screen.total(r, filepath.Join(d.Evidence, "adversarial-report"))
	for _, id := range ids {
		if _, derr := p.Client.Teardown(ctx, id); derr != nil {
			err = errors.Join(err, derr)
		}
	}
	if err = errors.Join(err, d.screen.err); err != nil {
		return err
	}
	if !r.Summary.Passed {
		return &Failed{r.Summary.Failures}
	}
	return nil
}

// withheld wants no brokered secret on any public surface, and surfaces that
// were there to be searched.
func (d *adversarial) withheld(public []surface) verdict {
	if leak := d.secrets.leak(public); leak != "" {
		return fail("%s", leak)
	}
	if len(public) == 0 {
		return fail("nothing public could be read")
	}
	return pass("no brokered secret on any public Session · no eyJ token")
}

func (d *adversarial) show(sc scenario, v verdict) {
	if sc.hostile {
		d.screen.check(sc.label, v, "CONTAINED", "ESCAPED", terminal.BoldRed)
		return
	}
	d.screen.check(sc.label, v, "SUCCEEDED", "FAILED", terminal.BoldGreen)
}

func (r *report) add(w row) {
	r.Rows = append(r.Rows, w)
	if !w.Passed {
		r.Summary.Failures = append(r.Summary.Failures, w.Scenario+": "+w.Reason)
	}
}

// hostOnly returns the lines of the host's file at path that the image's file of
// that name does not have. An image without the file has no lines.
func hostOnly(path, rootfs string) ([]string, error) {
	host, err := os.ReadFile(path)
	if errors.Is(err, os.ErrPermission) || errors.Is(err, os.ErrNotExist) {
		return nil, nil // what this user can't read can't be compared; the canary remains
	}
	if err != nil {
		return nil, err
	}
	var image []byte
	if rootfs != "" {
		if image, err = os.ReadFile(filepath.Join(rootfs, path)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("read the image's %s: %w", path, err)
		}
	}
	known := strings.Split(string(image), "\n")
	var lines []string
	for line := range strings.Lines(string(host)) {
		if line = strings.TrimSuffix(line, "\n"); len(line) > 3 && !slices.Contains(known, line) {
			lines = append(lines, line)
		}
	}
	return lines, nil
}

// A Record keeps what is written to it. Its zero value is empty.
type Record struct {
	mu sync.Mutex
	b  []byte
}

// Write implements io.Writer.
func (r *Record) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.b = append(r.b, p...)
	return len(p), nil
}

// Bytes returns all that was written so far.
func (r *Record) Bytes() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.b)
}
