package firecracker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

const (
	// maxAnswer is more than any answer of the calls here has.
	maxAnswer = 64 << 10

	// maxSocketPath is sun_path's size without its final zero (unix(7)).
	maxSocketPath = 107
)

// A Fault is the VMM's refusal of a call.
type Fault struct {
	Method, Path string
	Status       int    // of HTTP
	Message      string // the VMM's own words, at most 1,000 bytes
}

// Error implements error.
func (f *Fault) Error() string {
	return fmt.Sprintf("%s %s: the VMM answers %d: %s", f.Method, f.Path, f.Status, f.Message)
}

// A Client calls the API of one VMM. It is safe for concurrent use and holds no
// descriptor between calls. Nothing is tried twice: a refusal is a *Fault, and
// every other error means that it is not known whether the call took effect.
type Client struct {
	sock string
	http *http.Client
}

// Dial returns a client of the VMM that serves its API at sock. It connects with
// the first call. sock may be longer than a socket's address can be.
func Dial(sock string) *Client {
	return &Client{sock: sock, http: &http.Client{
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return dialUnix(ctx, sock)
			},
			DisableKeepAlives:      true,
			DisableCompression:     true,
			MaxResponseHeaderBytes: maxAnswer,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// dialUnix connects to a socket by way of its directory's descriptor where the
// path is too long for an address.
func dialUnix(ctx context.Context, sock string) (net.Conn, error) {
	d := net.Dialer{}
	if len(sock) <= maxSocketPath {
		return d.DialContext(ctx, "unix", sock)
	}
	dir, err := os.Open(filepath.Dir(sock))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return d.DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(sock)))
}

// Ready waits until the VMM's socket accepts connections, which takes it some
// milliseconds from its start, or until ctx ends, whose error it returns with the
// last refusal in words.
func (c *Client) Ready(ctx context.Context) error {
	const pause = 2 * time.Millisecond
	var last error
	for {
		conn, err := dialUnix(ctx, c.sock)
		if err == nil {
			return conn.Close()
		}
		if no := syscall.Errno(0); errors.As(err, &no) { // and not the end of ctx
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the VMM's API: %w (%v)", context.Cause(ctx), last)
		case <-time.After(pause):
		}
	}
}

// Instance returns what GET / says.
func (c *Client) Instance(ctx context.Context) (InstanceInfo, error) {
	var i InstanceInfo
	err := c.get(ctx, "/", &i)
	return i, err
}

// PutMachineConfig sets the machine's size, before it is started.
func (c *Client) PutMachineConfig(ctx context.Context, m MachineConfig) error {
	return c.send(ctx, http.MethodPut, "/machine-config", m)
}

// PutBootSource sets what the machine boots, before it is started.
func (c *Client) PutBootSource(ctx context.Context, b BootSource) error {
	return c.send(ctx, http.MethodPut, "/boot-source", b)
}

// PutDrive adds a drive, or changes the one of the same id, before the start.
func (c *Client) PutDrive(ctx context.Context, d Drive) error {
	return c.send(ctx, http.MethodPut, "/drives/"+url.PathEscape(d.DriveID), d)
}

// PutVsock gives the machine its vsock device, before it is started.
func (c *Client) PutVsock(ctx context.Context, v Vsock) error {
	return c.send(ctx, http.MethodPut, "/vsock", v)
}

// PutEntropy gives the machine its entropy device, before it is started.
func (c *Client) PutEntropy(ctx context.Context) error {
	return c.send(ctx, http.MethodPut, "/entropy", Entropy{})
}

// PutSerial says where the guest's serial console goes, before it is started. The
// qemu VMM keeps no more than the last 16 KiB in the file; Firecracker's file
// grows, and only a limit on the size of its files bounds it (CVE-2020-27174 is
// what an unbounded console does).
func (c *Client) PutSerial(ctx context.Context, s Serial) error {
	return c.send(ctx, http.MethodPut, "/serial", s)
}

// Start starts the machine. It can be started once.
func (c *Client) Start(ctx context.Context) error {
	return c.send(ctx, http.MethodPut, "/actions", Action{InstanceStart})
}

// PatchVM pauses or resumes the machine's processors.
func (c *Client) PatchVM(ctx context.Context, s VMState) error {
	return c.send(ctx, http.MethodPatch, "/vm", VM{s})
}

// send calls what answers with no content.
func (c *Client) send(ctx context.Context, method, path string, body any) error {
	b, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	answer, err := c.call(ctx, method, path, b, http.StatusNoContent)
	if err == nil && len(answer) > 0 {
		err = fmt.Errorf("%s %s: an answer of %d bytes where none was due", method, path, len(answer))
	}
	return err
}

// get calls what answers with one object.
func (c *Client) get(ctx context.Context, path string, into any) error {
	answer, err := c.call(ctx, http.MethodGet, path, nil, http.StatusOK)
	if err != nil {
		return err
	}
	if err := Decode(answer, into); err != nil {
		return fmt.Errorf("GET %s: read the answer: %w", path, err)
	}
	return nil
}

// call returns the body of an answer whose status is want, and a *Fault for every
// other.
func (c *Client) call(ctx context.Context, method, path string, body []byte, want int) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://localhost"+path, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	req.Header.Set("Accept", "application/json")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var outer *url.Error // repeats the method and an address that says nothing
		if errors.As(err, &outer) {
			err = outer.Err
		}
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, fmt.Errorf("%s %s: read the answer: %w", method, path, err)
	}
	if len(b) > maxAnswer {
		return nil, fmt.Errorf("%s %s: an answer of more than %d bytes", method, path, maxAnswer)
	}
	if resp.StatusCode == want {
		return b, nil
	}
	const most = 1000
	var fault FaultBody
	if err := Decode(b, &fault); err != nil {
		fault.FaultMessage = fmt.Sprintf("%.*q", most, b)
	}
	return nil, &Fault{Method: method, Path: path, Status: resp.StatusCode, Message: fmt.Sprintf("%.*s", most, fault.FaultMessage)}
}
