package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/enclave-run/enclave"
)

// hoarder returns a neighbour that stores requests of 10 MiB until its
// organisation has no storage left, and then goes on asking.
func hoarder(srv *Server) hostile {
	full := act{request: enclave.SessionRequest{Code: "pass\n#" + strings.Repeat("x", 10<<20-6)}}
	return hostile{"a tenant that fills its storage", func(ctx context.Context) error {
		_, err := srv.Tenant.Run(ctx, full.request)
		var refused *enclave.Error
		if errors.As(err, &refused) && refused.Code == "quota_exceeded" {
			return nil
		}
		return err
	}}
}

const (
	readers    = 6
	readerTime = 200 * time.Millisecond // that they take nothing
)

// silentReaders returns a neighbour that asks for one large result six times at
// once, takes nothing of the answers, and asks for their heads besides.
func silentReaders(ctx context.Context, srv *Server) (hostile, error) {
	const size = 9_000_000
	h, err := srv.Client.Run(ctx, enclave.SessionRequest{Code: fmt.Sprintf("print('x' * %d)", size)})
	if err != nil {
		return hostile{}, err
	}
	r, err := h.Result(ctx)
	if err != nil {
		return hostile{}, err
	}
	if len(r.Stdout) <= size {
		return hostile{}, fmt.Errorf("the large result has %d bytes", len(r.Stdout))
	}
	at, err := url.Parse(srv.Client.BaseURL)
	if err != nil {
		return hostile{}, err
	}
	path := "/v1/sessions/" + h.ID() + "/result"
	return hostile{"readers that take nothing", func(ctx context.Context) error {
		var open []net.Conn
		defer func() {
			for _, c := range open {
				c.Close()
			}
		}()
		for range readers {
			c, err := new(net.Dialer).DialContext(ctx, "tcp", at.Host)
			if err != nil {
				return err
			}
			open = append(open, c)
			if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\n\r\n", path, at.Host, srv.Client.APIKey); err != nil {
				return err
			}
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodHead, srv.Client.BaseURL+path, nil)
		if err != nil {
			return err
		}
		req.Header.Set("Authorization", "Bearer "+srv.Client.APIKey)
		resp, err := srv.Client.HTTPClient.Do(req)
		if err != nil {
			return err
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		select {
		case <-time.After(readerTime):
		case <-ctx.Done():
		}
		return nil
	}}, nil
}
