package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"

	"github.com/enclave-run/enclave"
)

// cold times a session on a backend, from request to result, in turn with what
// raw does without Enclave: the same program from the same image.
func cold(ctx context.Context, c Config, name, backend, note string, raw func(context.Context) error) (_ []Result, err error) {
	p, err := c.boot(ctx, backend)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.Close(context.WithoutCancel(ctx))) }()
	as, bs, err := pair(c.Runs, func() error {
		_, err := runOne(ctx, p, enclave.SessionRequest{Code: hello})
		return err
	}, func() error { return raw(ctx) })
	if err != nil {
		return nil, err
	}
	return []Result{compared(name, median(as), median(bs), "ms", note)}, nil
}

// coldRun compares gVisor's with runsc itself.
func coldRun(ctx context.Context, c Config) ([]Result, error) {
	raw, err := newRaw(c)
	if err != nil {
		return nil, err
	}
	defer raw.close()
	return cold(ctx, c, "cold_run_vs_runsc", "gvisor", "p50, request to result, against `runsc run`", raw.run)
}

// coldDocker compares gVisor's with docker.
func coldDocker(ctx context.Context, c Config) ([]Result, error) {
	return coldAgainstDocker(ctx, c, "cold_run_vs_docker", "gvisor", "p50, in gVisor, against `docker run --network none`")
}

// coldOnDocker compares docker's with docker itself.
func coldOnDocker(ctx context.Context, c Config) ([]Result, error) {
	return coldAgainstDocker(ctx, c, "cold_run_on_docker", "docker", "p50, on docker (not a security boundary), against `docker run --network none`")
}

func coldAgainstDocker(ctx context.Context, c Config, name, backend, note string) (_ []Result, err error) {
	if why := c.Missing["docker"]; why != "" {
		return nil, skip(why)
	}
	if _, err := exec.LookPath("docker"); err != nil {
		return nil, skip("the program docker, which is what this is compared with, is not installed")
	}
	const ref = "enclave-bench:latest"
	load := c.command(ctx, "sh", "-c", `tar -C "$1" -c . | docker import - "$2"`, "sh", c.Rootfs, ref)
	if out, err := load.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("import the image into docker: %w: %s", err, out)
	}
	defer func() {
		if out, rerr := c.command(context.WithoutCancel(ctx), "docker", "rmi", "-f", ref).CombinedOutput(); rerr != nil {
			err = errors.Join(err, fmt.Errorf("remove the image from docker: %w: %s", rerr, out))
		}
	}()
	return cold(ctx, c, name, backend, note, func(ctx context.Context) error {
		out, err := c.command(ctx, "docker", "run", "--rm", "--network", "none", ref, "python3", "-c", hello).CombinedOutput()
		if err != nil {
			return fmt.Errorf("docker run: %w: %s", err, out)
		}
		if string(out) != "hello\n" {
			return fmt.Errorf("docker run printed %q", out)
		}
		return nil
	})
}

// command is a command that talks to the daemon that the backend uses.
func (c Config) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST="+c.Docker)
	return cmd
}
