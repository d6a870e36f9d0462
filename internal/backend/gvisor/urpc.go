package gvisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/local"
)

// maxAnswer bounds what is read of one answer of a sandbox's kernel, which a
// workload may have taken over. A thousand tasks take some 200 KiB.
const maxAnswer = 4 << 20

// A sentryConn is a connection to the control socket of a sandbox's kernel,
// which takes one call at a time: JSON objects without framing (gVisor's
// pkg/urpc).
type sentryConn struct{ conn net.Conn }

// dialSentry connects to the kernel of s.
func dialSentry(ctx context.Context, s *local.Sandbox) (*sentryConn, error) {
	dir, err := os.Open(s.Path(runscDir))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	var d net.Dialer
	// Through a descriptor, because a socket's address has at most 107 bytes.
	conn, err := d.DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/runsc-%s.sock", dir.Fd(), s.ID))
	if err != nil {
		return nil, err
	}
	return &sentryConn{conn}, nil
}

func (c *sentryConn) close() { c.conn.Close() }

// call calls a method for the container id and decodes its result. After an
// error the connection is of no more use. It ends with ctx.
func (c *sentryConn) call(ctx context.Context, method string, id backend.ID, result any) error {
	stop := context.AfterFunc(ctx, func() { c.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := c.send(method, id); err != nil {
		return err
	}
	return decodeAnswer(c.conn, result)
}

// send begins a call, whose answer is still to be read.
func (c *sentryConn) send(method string, id backend.ID) error {
	request, err := json.Marshal(struct {
		Method string     `json:"method"`
		Arg    backend.ID `json:"arg"`
	}{method, id})
	if err != nil {
		return err
	}
	_, err = c.conn.Write(request)
	return err
}

// decodeAnswer reads one answer, of at most maxAnswer bytes.
func decodeAnswer(r io.Reader, result any) error {
	answer := struct {
		Success bool   `json:"success"`
		Err     string `json:"err"`
		Result  any    `json:"result"`
	}{Result: result}
	if err := json.NewDecoder(io.LimitReader(r, maxAnswer)).Decode(&answer); err != nil {
		return err
	}
	if !answer.Success {
		return fmt.Errorf("gvisor: %.200q", answer.Err)
	}
	return nil
}

// A sentryProcess is a thread group as the sandbox's kernel reports it
// (control.Process).
type sentryProcess struct {
	UID     uint32  `json:"uid"`
	Threads []int32 `json:"threads"`
}

// workloadTasks counts the threads of the sandbox that are not root's: root is
// the guest, and no workload can become it.
func workloadTasks(processes []sentryProcess) int64 {
	var n int64
	for _, p := range processes {
		if p.UID != 0 {
			n += int64(len(p.Threads))
		}
	}
	return n
}

// tasks asks for the number of the workload's tasks.
func (c *sentryConn) tasks(ctx context.Context, id backend.ID) (int64, error) {
	var processes []sentryProcess
	if err := c.call(ctx, "containerManager.Processes", id, &processes); err != nil {
		return 0, err
	}
	return workloadTasks(processes), nil
}

// errNoStatus is how a sandbox's kernel ends that was killed, or crashed.
var errNoStatus = errors.New("gvisor ended without reporting an exit status")

// askStatus begins to wait for the guest's exit. When it returns without an
// error the sandbox's kernel has the connection, so that a guest that exits the
// next moment can't exit unseen.
func askStatus(ctx context.Context, s *local.Sandbox) (*sentryConn, error) {
	c, err := dialSentry(ctx, s)
	if err != nil {
		return nil, err
	}
	// The answer to a first call says that the connection has been accepted.
	_, err = c.tasks(ctx, s.ID)
	if err == nil {
		err = c.send("containerManager.Wait", s.ID)
	}
	if err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

// readStatus returns the guest's exit status when it has exited.
func (c *sentryConn) readStatus(ctx context.Context) (int, error) {
	stop := context.AfterFunc(ctx, func() { c.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	var ws uint32
	if err := decodeAnswer(c.conn, &ws); err != nil {
		return 0, errNoStatus
	}
	return exitCode(ws), nil
}

// exitCode reads a wait status (wait(2)) as a shell does: 128 and the signal for
// a program that a signal ended.
func exitCode(ws uint32) int {
	if sig := ws & 0x7f; sig != 0 {
		return 128 + int(sig)
	}
	return int(ws >> 8 & 0xff)
}
