package gvisor

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/backend/local"
	"github.com/enclave-run/enclave/internal/backend/local/watch"
)

// Kill kills the sentry if it is not in its cgroup any more: somebody with root
// has moved it, and the group's being empty means nothing.
func (d *driver) Kill(_ context.Context, s *local.Sandbox) error {
	var st watch.Process
	if err := local.Read(s.Path(local.StartedFile), &st); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	process, err := st.Open()
	if err != nil || process == nil {
		return err
	}
	defer process.Close()
	raw, err := process.SyscallConn()
	if err != nil {
		return err
	}
	var kerr error
	if err := raw.Control(func(fd uintptr) { kerr = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) }); err != nil {
		return err
	}
	if kerr != nil && !errors.Is(kerr, unix.ESRCH) {
		return kerr
	}
	process.SetReadDeadline(time.Now().Add(watch.Reaped))
	watch.Await(process)
	return nil
}

// Clear has nothing to remove: what runsc mounts is in a namespace that went
// with its processes.
func (d *driver) Clear(context.Context, *local.Sandbox) error { return nil }
