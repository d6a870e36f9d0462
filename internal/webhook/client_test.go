package webhook

import (
	"context"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"
)

// A lab is a network in which names have the answers of a script and every dial
// is kept.
type lab struct {
	mu      sync.Mutex
	answers [][]netip.Addr // one for each look-up; the last one stays
	lookups []string
	dials   []string
}

func (l *lab) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lookups = append(l.lookups, host)
	if len(l.answers) == 0 {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	a := l.answers[0]
	if len(l.answers) > 1 {
		l.answers = l.answers[1:]
	}
	return a, nil
}

func (l *lab) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	l.mu.Lock()
	l.dials = append(l.dials, address)
	l.mu.Unlock()
	if !netip.MustParseAddrPort(address).Addr().IsLoopback() {
		return nil, errors.New("this lab has no such host")
	}
	return new(net.Dialer).DialContext(ctx, network, address)
}

func (l *lab) dialled() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.dials)
}

func (l *lab) client(t *testing.T, r Reach, roots *x509.CertPool, timeout time.Duration) *http.Client {
	t.Helper()
	c, err := NewClient(ClientConfig{Reach: r, Resolver: l, Dialer: l, Roots: roots, Timeout: timeout})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// receiver is an HTTPS server on a loopback port; its certificate is for
// example.com. It returns the port, and whom to trust.
func receiver(t *testing.T, h http.HandlerFunc) (port string, roots *x509.CertPool) {
	t.Helper()
	srv := httptest.NewTLSServer(h)
	t.Cleanup(srv.Close)
	roots = x509.NewCertPool()
	roots.AddCert(srv.Certificate())
	_, port, err := net.SplitHostPort(srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port, roots
}

func get(t *testing.T, c *http.Client, url string) (string, error) {
	t.Helper()
	resp, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.Status + " " + string(b), err
}

func addrs(as ...string) []netip.Addr {
	var out []netip.Addr
	for _, a := range as {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func TestOnlyAddressesThatWereJudgedAreDialled(t *testing.T) {
	port, roots := receiver(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") })
	for name, c := range map[string]struct {
		allow   []string
		answer  []netip.Addr
		url     string
		dialled []string // none means that it was refused before
	}{
		"what the operator listed":                  {[]string{"127.0.0.1/32"}, addrs("127.0.0.1"), "https://example.com:" + port, []string{"127.0.0.1:" + port}},
		"loopback that nobody listed":               {nil, addrs("127.0.0.1"), "https://example.com:" + port, nil},
		"a private address":                         {nil, addrs("10.0.0.8"), "https://example.com:" + port, nil},
		"a public one with a private one beside it": {nil, addrs("93.184.216.34", "10.0.0.8"), "https://example.com:" + port, nil},
		"metadata inside what the operator listed":  {[]string{"fd00::/8", "10.0.0.0/8"}, addrs("fd00:ec2::254"), "https://example.com:" + port, nil},
		"metadata":                                   {[]string{"10.0.0.0/8"}, addrs("169.254.169.254"), "https://example.com:" + port, nil},
		"metadata as a mapped address":               {[]string{"10.0.0.0/8"}, addrs("::ffff:169.254.169.254"), "https://example.com:" + port, nil},
		"a literal private address":                  {nil, nil, "https://10.0.0.8:" + port, nil},
		"a name that does not resolve":               {nil, nil, "https://example.com:" + port, nil},
		"plain http to a name outside the list":      {[]string{"10.0.0.0/8"}, addrs("93.184.216.34"), "http://example.com:" + port, nil},
		"https to a public name":                     {nil, addrs("93.184.216.34"), "https://example.com:" + port, []string{"93.184.216.34:" + port}},
		"IPv4 first, of several":                     {nil, addrs("2606:4700::1111", "93.184.216.34"), "https://example.com:" + port, []string{"93.184.216.34:" + port}},
		"this machine by a name that is never asked": {[]string{"127.0.0.1/32"}, addrs("127.0.0.1"), "https://localhost:" + port, nil},
	} {
		l := &lab{answers: [][]netip.Addr{c.answer}}
		got, err := get(t, l.client(t, reach(t, c.allow...), roots, time.Minute), c.url)
		if !slices.Equal(l.dialled(), c.dialled) {
			t.Errorf("%s: dialled %q, want %q", name, l.dialled(), c.dialled)
		}
		if ok := c.dialled != nil && c.allow != nil; ok != (err == nil) || ok && got != "200 OK hello" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		if c.dialled == nil && c.answer != nil && !errors.Is(err, ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
		if len(l.lookups) > 1 {
			t.Errorf("%s: looked up %q", name, l.lookups)
		}
	}
}

// A name whose second answer is another is dialled at the first, which was
// judged: it is resolved once a fetch.
func TestRebindingFindsNoSecondLookUp(t *testing.T) {
	port, roots := receiver(t, func(w http.ResponseWriter, _ *http.Request) {})
	l := &lab{answers: [][]netip.Addr{addrs("127.0.0.1"), addrs("169.254.169.254")}}
	c := l.client(t, reach(t, "127.0.0.1/32"), roots, time.Minute)
	if _, err := get(t, c, "https://example.com:"+port); err != nil {
		t.Error(err)
	}
	if _, err := get(t, c, "https://example.com:"+port); !errors.Is(err, ErrRefused) {
		t.Errorf("the second fetch: %v", err)
	}
	if got := l.dialled(); !slices.Equal(got, []string{"127.0.0.1:" + port}) || len(l.lookups) != 2 {
		t.Errorf("dialled %q after %q", got, l.lookups)
	}
}

func TestRedirectsAreNotFollowedAndProxiesNotUsed(t *testing.T) {
	proxied := make(chan struct{}, 8)
	proxy := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { proxied <- struct{}{} }))
	defer proxy.Close()
	t.Setenv("HTTPS_PROXY", proxy.URL)
	t.Setenv("HTTP_PROXY", proxy.URL)
	t.Setenv("ALL_PROXY", proxy.URL)
	port, roots := receiver(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://169.254.169.254/latest/meta-data/", http.StatusTemporaryRedirect)
	})
	l := &lab{answers: [][]netip.Addr{addrs("127.0.0.1")}}
	got, err := get(t, l.client(t, reach(t, "127.0.0.1/32"), roots, time.Minute), "https://example.com:"+port)
	if err != nil || got[:3] != "307" {
		t.Errorf("%q, %v", got, err)
	}
	if d := l.dialled(); !slices.Equal(d, []string{"127.0.0.1:" + port}) {
		t.Errorf("dialled %q", d)
	}
	if len(proxied) != 0 {
		t.Error("the proxy of the environment was used")
	}
}

func TestServersMustProveTheirName(t *testing.T) {
	port, roots := receiver(t, func(http.ResponseWriter, *http.Request) {})
	for name, roots := range map[string]*x509.CertPool{"another.example": roots, "example.com": x509.NewCertPool()} {
		l := &lab{answers: [][]netip.Addr{addrs("127.0.0.1")}}
		if _, err := get(t, l.client(t, reach(t, "127.0.0.1/32"), roots, time.Minute), "https://"+name+":"+port); err == nil {
			t.Errorf("%s was taken for whom it is not", name)
		}
	}
}
