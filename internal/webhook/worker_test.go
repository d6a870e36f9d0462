package webhook

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/session"
)

// local returns a client that reaches example.com, and every name, on loopback.
func local(t *testing.T, roots *x509.CertPool, timeout time.Duration) *http.Client {
	l := &lab{answers: [][]netip.Addr{addrs("127.0.0.1")}}
	return l.client(t, reach(t, "127.0.0.0/8"), roots, timeout)
}

func TestDeliveriesAreSignedAndThin(t *testing.T) {
	type got struct {
		method, path, kind, id string
		header                 http.Header
		body                   []byte
	}
	came := make(chan got, 8)
	port, roots := receiver(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		came <- got{r.Method, r.URL.Path, r.Header.Get("Content-Type"), r.Header.Get("webhook-id"), r.Header, b}
		w.WriteHeader(http.StatusNoContent)
	})
	b := newBox(owed(7, "acme", "https://example.com:"+port+"/canary-path?q=1"))
	now := then.Add(time.Second)
	r := work(t, b, local(t, roots, time.Minute), func() time.Time { return now })
	g := take(t, came)
	if g.method != "POST" || g.path != "/canary-path" || g.kind != "application/json" || g.id != "ended_s-0a1b2c-7" {
		t.Errorf("%+v", g)
	}
	if err := enclave.VerifyWebhook(g.header, g.body, testKey(t).Public(), now); err != nil {
		t.Error(err)
	}
	golden, err := os.ReadFile("../../api/testdata/webhook.json")
	if err != nil {
		t.Fatal(err)
	}
	var want bytes.Buffer
	if err := json.Compact(&want, golden); err != nil {
		t.Fatal(err)
	}
	if shown := strings.ReplaceAll(string(g.body), `\u003c`, "<"); shown != want.String() {
		t.Errorf("%s, want %s", shown, want.String())
	}
	if id := take(t, b.ended); id != 7 || take(t, r.results) != delivered {
		t.Error("it is still owed")
	}
	r.stop()
	for _, never := range []string{"canary-path", "example.com", port} {
		if strings.Contains(r.log.String(), never) {
			t.Errorf("%q is in the log: %s", never, r.log)
		}
	}
}

func TestWhatAStatusMeans(t *testing.T) {
	w := &Worker{Config{Now: func() time.Time { return then }, Random: func() float64 { return 0.5 }}}
	for _, c := range []struct {
		status     int
		retryAfter string
		attempt    int
		want       string
		wait       time.Duration
	}{
		{200, "", 1, delivered, 0}, {204, "", 8, delivered, 0}, {202, "3600", 1, delivered, 0},
		{302, "", 1, retried, 5 * time.Second}, {500, "", 1, retried, 5 * time.Second}, {503, "", 2, retried, 5 * time.Minute},
		{500, "", 7, retried, 10 * time.Hour}, {500, "", 8, gaveUp, 0},
		{408, "", 1, retried, 5 * time.Second}, {425, "", 1, retried, 5 * time.Second}, {429, "", 1, retried, 5 * time.Second},
		{400, "", 1, gaveUp, 0}, {401, "", 1, gaveUp, 0}, {404, "", 1, gaveUp, 0}, {410, "", 1, gaveUp, 0},
		{503, "120", 1, retried, 2 * time.Minute}, {429, "999999", 1, retried, time.Hour}, {503, "1", 3, retried, 30 * time.Minute},
		{503, then.Add(10 * time.Minute).Format(http.TimeFormat), 1, retried, 599500 * time.Millisecond},
		{503, "-5", 1, retried, 5 * time.Second}, {503, "soon", 1, retried, 5 * time.Second}, {503, then.Add(-time.Hour).Format(http.TimeFormat), 1, retried, 5 * time.Second},
	} {
		resp := &http.Response{StatusCode: c.status, Header: http.Header{"Retry-After": {c.retryAfter}}}
		got, next, _ := w.judge(judged(resp, then), c.attempt)
		// then has half a second, which HTTP's dates have not.
		if got != c.want || c.want == retried && next.Sub(then).Round(10*time.Millisecond) != c.wait {
			t.Errorf("%d %q, attempt %d: %s after %s, want %s after %s", c.status, c.retryAfter, c.attempt, got, next.Sub(then), c.want, c.wait)
		}
	}
	var total [2]time.Duration
	for i, random := range []float64{0, 0.999} {
		w.Random = func() float64 { return random }
		for n := 1; n <= 7; n++ {
			_, next, _ := w.judge(answer{}, n)
			total[i] += next.Sub(then)
		}
	}
	if total[0] < 12*time.Hour || total[1] > 36*time.Hour || total[0] == total[1] {
		t.Errorf("eight attempts take from %s to %s", total[0], total[1])
	}
}

// A receiver that answers no request, one that never ends its answer, and one
// that sends one without end hold an attempt for its time and no longer.
func TestReceiversThatStallAreCut(t *testing.T) {
	stop := make(chan struct{})
	defer close(stop) // before the servers are closed, which wait for their handlers
	hang := func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-stop:
		case <-r.Context().Done():
		}
	}
	for name, h := range map[string]http.HandlerFunc{
		"never answers": hang,
		"drips its header": func(w http.ResponseWriter, r *http.Request) {
			c, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return
			}
			defer c.Close()
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n")
			hang(w, r)
		},
		"sends a header without end": func(w http.ResponseWriter, r *http.Request) {
			c, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return
			}
			defer c.Close()
			for err == nil {
				_, err = fmt.Fprintf(c, "X-%s: y\r\n", strings.Repeat("x", 8192))
			}
		},
	} {
		port, roots := receiver(t, h)
		b := newBox(owed(1, "acme", "https://example.com:"+port+"/"))
		r := work(t, b, local(t, roots, 200*time.Millisecond), func() time.Time { return then })
		if got := take(t, r.results); got != retried {
			t.Errorf("%s: %s", name, got)
		}
		if d := take(t, b.postponed); d.Attempts != 1 || !d.Next.Round(time.Millisecond).Equal(then.Add(5*time.Second)) {
			t.Errorf("%s: %+v", name, d)
		}
		r.stop()
	}
	// A body without end is an answer all the same.
	port, roots := receiver(t, func(w http.ResponseWriter, _ *http.Request) {
		for err := error(nil); err == nil; {
			_, err = w.Write(make([]byte, 32<<10))
		}
	})
	b := newBox(owed(1, "acme", "https://example.com:"+port+"/"))
	if got := take(t, work(t, b, local(t, roots, time.Minute), func() time.Time { return then }).results); got != delivered {
		t.Errorf("an endless body: %s", got)
	}
}

// A tenant whose endpoints never answer takes half of the places, and leaves
// the other half to others, however much it is owed.
func TestADeadEndpointDelaysNobodyElse(t *testing.T) {
	var mu sync.Mutex
	var most, now, mostOfHost int
	byHost := map[string]int{}
	dead := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		mu.Lock()
		now++
		most = max(most, now)
		byHost[r.Host]++
		mostOfHost = max(mostOfHost, byHost[r.Host])
		mu.Unlock()
		_, _ = io.Copy(io.Discard, r.Body) // net/http notices that a client is gone once its body was read
		<-r.Context().Done()
		mu.Lock()
		now--
		byHost[r.Host]--
		mu.Unlock()
	}))
	defer dead.Close()
	came := make(chan string, 64)
	alive := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { came <- r.Header.Get("webhook-id") }))
	defer alive.Close()
	_, port, _ := net.SplitHostPort(dead.Listener.Addr().String())
	var ds []session.Delivery
	for i := range int64(5000) {
		ds = append(ds, owed(i+1, "acme", fmt.Sprintf("http://h%d.example:%s/", i%3, port)))
	}
	for i := range int64(20) {
		d := owed(10_001+i, "globex", alive.URL)
		d.Next = then.Add(-time.Minute + time.Duration(i)) // long after those of acme
		ds = append(ds, d)
	}
	b := newBox(ds...)
	r := work(t, b, local(t, nil, time.Hour), func() time.Time { return then })
	for range 20 {
		take(t, came)
	}
	for range 20 {
		if id := take(t, b.ended); id < 10_001 {
			t.Errorf("the dead endpoint took %d", id)
		}
	}
	r.stop()
	mu.Lock()
	defer mu.Unlock()
	if most > perTenant || mostOfHost > perHost {
		t.Errorf("%d attempts of one tenant at once, %d to one host", most, mostOfHost)
	}
}

func TestATenantWithNothingInMemoryHasRoomThere(t *testing.T) {
	q := newQueue()
	for i := range int64(heldInAll) {
		if !q.add(owed(i+1, fmt.Sprintf("org%d", i/heldByTenant), "http://h.example/")) {
			t.Fatalf("delivery %d is refused", i)
		}
	}
	if q.add(owed(heldInAll+1, "org0", "http://h.example/")) {
		t.Error("who holds the most is given more")
	}
	if !q.add(owed(heldInAll+2, "acme", "http://h.example/")) {
		t.Error("the first delivery of a tenant waits for others'")
	}
	if q.add(owed(heldInAll+3, "acme", "http://h.example/")) {
		t.Error("the second one too is taken")
	}
}

func TestTenThousandAreDeliveredOnceEach(t *testing.T) {
	var mu sync.Mutex
	seen := map[string]int{}
	inFlight, most := map[string]int{}, map[string]int{}
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		org := r.URL.Path
		mu.Lock()
		seen[r.Header.Get("webhook-id")]++
		inFlight[org]++
		most[org] = max(most[org], inFlight[org])
		mu.Unlock()
		mu.Lock()
		inFlight[org]--
		mu.Unlock()
	}))
	defer srv.Close()
	var ds []session.Delivery
	for i := range int64(10_000) {
		org := fmt.Sprintf("org%d", i%16)
		ds = append(ds, owed(i+1, org, srv.URL+"/"+org))
	}
	b := newBox(ds...)
	begun := time.Now()
	r := work(t, b, local(t, nil, time.Minute), func() time.Time { return then.Add(time.Since(begun)) })
	for range ds {
		take(t, b.ended)
	}
	r.stop()
	if len(seen) != len(ds) {
		t.Errorf("%d of %d came", len(seen), len(ds))
	}
	for id, n := range seen {
		if n != 1 {
			t.Errorf("%s came %d times", id, n)
		}
	}
	for org, n := range most {
		if n > perHost {
			t.Errorf("%s had %d attempts at once", org, n)
		}
	}
}

func TestADeliveryThatIsTooOldIsGivenUp(t *testing.T) {
	b := newBox(owed(1, "acme", "http://127.0.0.1:1/"))
	r := work(t, b, local(t, nil, time.Minute), func() time.Time { return then.Add(maxAge) })
	if take(t, b.ended) != 1 || take(t, r.results) != gaveUp {
		t.Error("it is still owed")
	}
}

// What went wrong is named from a closed list: errors of net/http repeat the
// URL, those of crypto/tls what the receiver sent.
func TestFailuresRepeatNothing(t *testing.T) {
	port, roots := receiver(t, func(http.ResponseWriter, *http.Request) {})
	bad := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		c, _, err := http.NewResponseController(w).Hijack()
		if err == nil {
			_, _ = io.WriteString(c, "canary\x1b[2J\r\n\r\n")
			c.Close()
		}
	}))
	defer bad.Close()
	var whys []string
	for _, url := range []string{
		"https://canary.example:" + port + "/canary", "https://10.0.0.1:443/canary", "http://127.0.0.1:1/canary", bad.URL + "/canary",
	} {
		w := &Worker{Config{Client: local(t, roots, time.Minute), Key: testKey(t)}}
		whys = append(whys, w.attempt(t.Context(), about(owed(1, "acme", url)), then).why)
	}
	if want := []string{"certificate not valid", "address refused", "no connection", "no answer"}; !slices.Equal(whys, want) {
		t.Errorf("%q, want %q", whys, want)
	}
}
