package wire

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// callTimeout bounds every call that answers at once, whatever the caller's
// context allows: a guest that is silent is one that is broken or hostile.
const callTimeout = 30 * time.Second

// A Client makes the guest's calls. All methods may be called concurrently; each
// takes at most as long as its context, and but for Start, Connect, ReadFile and
// WriteFile no longer than 30 s.
type Client struct {
	http *http.Client
	conn net.Conn
}

// NewClient returns a client on conn, the control connection, which it owns.
func NewClient(conn net.Conn) *Client {
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	t := &http.Transport{
		Protocols:              p,
		DialContext:            func(context.Context, string, string) (net.Conn, error) { return conn, nil },
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxHeader,
		// Without these the library buffers 4 MiB a stream, 1 GiB a connection.
		HTTP2: &http.HTTP2Config{
			MaxReceiveBufferPerStream:     256 << 10,
			MaxReceiveBufferPerConnection: 2 << 20,
			MaxReadFrameSize:              MaxChunk,
		},
	}
	c := &Client{conn: conn, http: &http.Client{
		// A guest leads its core nowhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	// A Transport would dial again whenever it likes. There is one connection,
	// made by the guest; when it is gone the sandbox is. Its set-up sends less
	// than any socket buffers, so it needs no deadline.
	one, err := t.NewClientConn(context.Background(), "http", "guest:80")
	if err != nil {
		c.http.Transport = broken{err}
		return c
	}
	c.http.Transport = one
	return c
}

// A broken connection fails every call.
type broken struct{ err error }

func (b broken) RoundTrip(*http.Request) (*http.Response, error) { return nil, b.err }

// Close closes the connection. The guest ends everything when it notices.
func (c *Client) Close() error {
	if one, ok := c.http.Transport.(*http.ClientConn); ok {
		_ = one.Close()
	}
	return c.conn.Close()
}

// Hello waits for the guest to have set itself up, and refuses one of another
// version or whose privileges are not gone.
func (c *Client) Hello(ctx context.Context) (Hello, error) { return c.Keep(ctx, Lease{}) }

// Keep is Hello, and gives the guest a lease.
func (c *Client) Keep(ctx context.Context, l Lease) (Hello, error) {
	var h Hello
	if err := c.call(ctx, http.MethodPost, PathHello, nil, l, &h); err != nil {
		return Hello{}, fmt.Errorf("greet the guest: %w", err)
	}
	if h.Version != Version || !h.Confined {
		return Hello{}, fmt.Errorf("%w: guest of version %d, confined %t", ErrProtocol, h.Version, h.Confined)
	}
	return h, nil
}

// Shutdown makes the guest end every process, send what packets they left and
// the mark, and exit. It returns when the mark has been sent, and c is closed
// then.
func (c *Client) Shutdown(ctx context.Context) error {
	if err := c.call(ctx, http.MethodPost, PathShutdown, nil, nil, nil); err != nil {
		return fmt.Errorf("shut the guest down: %w", err)
	}
	_ = c.Close() // that the answer has arrived is what the guest waits for
	return nil
}

// Start starts a process, or goes on with the one that was started with r's Key.
// ctx bounds the call, not the process.
//
// An image that can't run the language gives a CallError that is
// ErrNoInterpreter and names it.
func (c *Client) Start(ctx context.Context, r StartRequest) (*Process, error) {
	p, err := c.events(ctx, http.MethodPost, PathProcesses, r)
	if err != nil {
		return nil, fmt.Errorf("start process: %w", err)
	}
	p.offset = r.From
	return p, nil
}

// Connect returns what the process id does from now on, beginning with a
// Started event. A slow reader of it loses output, of which Dropped tells.
func (c *Client) Connect(ctx context.Context, id uint32) (*Process, error) {
	p, err := c.events(ctx, http.MethodGet, processPath(PathOutput, id), nil)
	if err != nil {
		return nil, fmt.Errorf("connect to process %d: %w", id, err)
	}
	return p, nil
}

// Processes lists what was started and whose exit was not acknowledged.
func (c *Client) Processes(ctx context.Context) ([]ProcessInfo, error) {
	var l ProcessList
	if err := c.call(ctx, http.MethodGet, PathProcesses, nil, nil, &l); err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	return l.Processes, nil
}

// Stat describes the file at path; a link is not followed.
func (c *Client) Stat(ctx context.Context, path string) (FileInfo, error) {
	var f FileInfo
	if err := c.call(ctx, http.MethodGet, PathStat, url.Values{"path": {path}}, nil, &f); err != nil {
		return FileInfo{}, fmt.Errorf("stat %s: %w", path, err)
	}
	return f, nil
}

// List describes what the directory at path holds.
func (c *Client) List(ctx context.Context, path string) (Listing, error) {
	var l Listing
	if err := c.call(ctx, http.MethodGet, PathList, url.Values{"path": {path}}, nil, &l); err != nil {
		return Listing{}, fmt.Errorf("list %s: %w", path, err)
	}
	if len(l.Entries) > MaxEntries {
		return Listing{}, fmt.Errorf("list %s: %w: %d entries", path, ErrProtocol, len(l.Entries))
	}
	return l, nil
}

// MakeDir makes the directory at path and those above it. One that exists is
// left as it is.
func (c *Client) MakeDir(ctx context.Context, path string) error {
	if err := c.call(ctx, http.MethodPost, PathMakeDir, nil, PathRequest{path}, nil); err != nil {
		return fmt.Errorf("make directory %s: %w", path, err)
	}
	return nil
}

// Move renames from to to, replacing a file that is there.
func (c *Client) Move(ctx context.Context, from, to string) error {
	if err := c.call(ctx, http.MethodPost, PathMove, nil, MoveRequest{from, to}, nil); err != nil {
		return fmt.Errorf("move %s to %s: %w", from, to, err)
	}
	return nil
}

// Remove removes path and all below it. Removing what does not exist succeeds.
func (c *Client) Remove(ctx context.Context, path string) error {
	if err := c.call(ctx, http.MethodPost, PathRemove, nil, PathRequest{path}, nil); err != nil {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return nil
}

// WriteFile writes the file at path, with the workload's identity, making the
// directories above it. A relative path is below WorkDir.
func (c *Client) WriteFile(ctx context.Context, path string, mode fs.FileMode, r io.Reader) error {
	q := url.Values{"path": {path}, "mode": {strconv.FormatUint(uint64(mode.Perm()), 8)}}
	resp, err := c.do(ctx, http.MethodPut, PathContent, q, io.NopCloser(r))
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer resp.Body.Close()
	return nil
}

// ReadFile reads the regular file at path, with the workload's identity. How
// much to read is the caller's to bound; ctx ends the reading too.
func (c *Client) ReadFile(ctx context.Context, path string) (io.ReadCloser, error) {
	resp, err := c.do(ctx, http.MethodGet, PathContent, url.Values{"path": {path}}, nil)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return resp.Body, nil
}

// call makes a call whose answer is one JSON value, or nothing if out is nil.
func (c *Client) call(ctx context.Context, method, path string, q url.Values, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encode call: %w", err)
		}
		body = bytes.NewReader(b)
	}
	resp, err := c.do(ctx, method, path, q, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		return nil
	}
	b, err := readCapped(resp.Body, maxReply)
	if err != nil {
		return err
	}
	return decodeStrict(b, out)
}

// do makes a call and returns an answer that is not a refusal. Its body is the
// caller's to close.
func (c *Client) do(ctx context.Context, method, path string, q url.Values, body io.Reader) (*http.Response, error) {
	u := url.URL{Scheme: "http", Host: "guest", Path: path, RawQuery: q.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, fmt.Errorf("make call: %w", err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("call the guest: %w", violation(err))
	}
	if resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusNoContent {
		return resp, nil
	}
	defer resp.Body.Close()
	b, err := readCapped(resp.Body, maxError)
	if err != nil {
		return nil, err
	}
	var refused CallError
	if err := decodeStrict(b, &refused); err != nil {
		return nil, fmt.Errorf("%w (status %d)", err, resp.StatusCode)
	}
	return nil, &refused
}

// violation adds ErrProtocol to an error of the transport that tells of what
// the guest did. The library has no types for these (golang.org/issue/53896),
// so all that is neither the context's nor the connection's end counts.
func violation(err error) error {
	var op *net.OpError
	switch {
	case strings.Contains(err.Error(), "client conn not usable"): // by an earlier call's end
		return fmt.Errorf("%w: %w", net.ErrClosed, err)
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded),
		errors.Is(err, net.ErrClosed), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF),
		errors.As(err, &op), strings.Contains(err.Error(), "client connection lost"):
		return err
	}
	return fmt.Errorf("%w: %w", ErrProtocol, err)
}

// readCapped reads r, which may have at most limit bytes.
func readCapped(r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read the guest's answer: %w", violation(err))
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%w: answer of more than %d bytes", ErrProtocol, limit)
	}
	return b, nil
}

// decodeStrict decodes the one JSON value in b and refuses unknown fields.
func decodeStrict(b []byte, out any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(out); err != nil {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("%w: more than one answer", ErrProtocol)
	}
	return nil
}
