package posture

import (
	"bytes"
	"context"
	"crypto/rand"
	_ "embed" // the probes
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/sandbox"
	"github.com/enclave-run/enclave/internal/wire"
)

//go:embed inside.py
var insideProbe string

//go:embed busy.py
var busyWorkload string

// A Lab is a backend and what it needs to have a sandbox described.
type Lab struct {
	Backend backend.Backend
	Image   string // manifest digest of an image with python3
	Rootfs  string // where that image is unpacked
}

// limits are those of the sandboxes that are described: the golden descriptions
// have them.
var limits = backend.Limits{MilliCPU: 1000, CPU: 10 * time.Minute, Memory: 512 << 20, Pids: 256, Disk: 256 << 20}

// A Description is how a sandbox looked at one moment, from the host and inside.
type Description struct{ Host, Inside Facts }

const (
	startTime = 30 * time.Second // for a sandbox's guest to connect
	cleanTime = 30 * time.Second // for its end
	maxAnswer = 8 << 20
)

// Describe starts a sandbox, describes it while it is idle and while a workload
// keeps it busy, and destroys it. An Idle description from inside has the one
// process that describes.
func Describe(ctx context.Context, lab Lab) (all [2]Description, err error) {
	id := newID()
	defer func() {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTime)
		defer cancel()
		if derr := lab.Backend.Destroy(clean, id); derr != nil {
			err = errors.Join(err, fmt.Errorf("destroy: %w", derr))
		}
	}()
	start, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	box, err := sandbox.Open(start, lab.Backend, id, backend.Spec{Image: lab.Image, Limits: limits})
	if err != nil {
		return all, err
	}
	client := box.Guest
	heard := make(chan struct{})
	go func() {
		defer close(heard)
		_, _ = io.Copy(io.Discard, box.Packets) // what the sandbox sends goes nowhere
	}()
	defer func() {
		box.Close()
		<-heard
	}()
	if _, err := client.Hello(start); err != nil {
		return all, fmt.Errorf("the guest does not speak: %w", err)
	}

	look := func(d *Description) (err error) {
		if d.Host, err = onHost(lab, id); err != nil {
			return err
		}
		d.Inside, err = inside(ctx, lab.Backend.Info().Name, id, client)
		return err
	}
	if err := look(&all[Idle]); err != nil {
		return all, err
	}
	p, err := begin(ctx, client)
	if err != nil {
		return all, err
	}
	defer p.Close()
	return all, look(&all[Busy])
}

func newID() backend.ID {
	var name [20]byte
	rand.Read(name[:])
	for i := range name {
		name[i] = 'a' + name[i]%26
	}
	return backend.ID(name[:])
}

// begin starts the workload that is busy and waits until it is.
func begin(ctx context.Context, client *wire.Client) (*wire.Process, error) {
	p, err := client.Start(ctx, wire.StartRequest{Language: "python", Code: busyWorkload})
	if err != nil {
		return nil, fmt.Errorf("start the workload: %w", err)
	}
	defer context.AfterFunc(ctx, func() { p.Close() })()
	var said []byte
	for {
		e, err := p.Next()
		if err != nil {
			p.Close()
			return nil, fmt.Errorf("the workload was to be busy and ended (%w): %.500s", err, said)
		}
		if said = append(said, e.Data...); e.Kind == wire.Stdout && bytes.Contains(e.Data, []byte("busy")) {
			return p, nil
		}
	}
}

// inside has the workload of the sandbox id describe what it sees.
func inside(ctx context.Context, of string, id backend.ID, client *wire.Client) (Facts, error) {
	p, err := client.Start(ctx, wire.StartRequest{Language: "python", Code: insideProbe})
	if err != nil {
		return nil, fmt.Errorf("start the probe: %w", err)
	}
	defer p.Close()
	defer context.AfterFunc(ctx, func() { p.Close() })()
	name, err := namer(of, id)
	if err != nil {
		return nil, err
	}
	var stdout, stderr []byte
	for {
		e, err := p.Next()
		if err != nil {
			return nil, fmt.Errorf("the probe was cut off: %w", err)
		}
		switch e.Kind {
		case wire.Stdout:
			stdout = append(stdout, e.Data...)
		case wire.Stderr:
			stderr = append(stderr, e.Data...)
		case wire.Exited:
			var lines []string
			if err := json.Unmarshal(stdout, &lines); err != nil || e.Code != 0 {
				return nil, fmt.Errorf("the probe ended with %d: %.500s", e.Code, stderr)
			}
			f := Facts{}
			for _, l := range lines {
				f[name(l)] = true
			}
			return f, nil
		}
		if len(stdout)+len(stderr) > maxAnswer {
			return nil, errors.New("the probe says too much")
		}
	}
}
