package httpapi

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
)

// behindADoor serves handler behind a door for most connections.
func behindADoor(t *testing.T, most int, handler http.HandlerFunc) (addr string, d *Door) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d = NewDoor(l, most)
	srv := &http.Server{Handler: handler, ConnState: noteState}
	done := make(chan struct{})
	go func() { defer close(done); srv.Serve(d) }()
	t.Cleanup(func() { srv.Close(); <-done })
	return l.Addr().String(), d
}

// A callerConn is a client's connection, on which it asks.
type callerConn struct {
	net.Conn
	in *bufio.Reader
}

func dial(t *testing.T, addr string) callerConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return callerConn{c, bufio.NewReader(c)}
}

// asks reports whether a request on c is answered.
func (c callerConn) asks(path string) bool {
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: h\r\n\r\n", path)
	resp, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return false
	}
	io.Copy(io.Discard, resp.Body)
	return resp.StatusCode == http.StatusOK
}

// cut returns once the server has closed c.
func (c callerConn) cut() { io.Copy(io.Discard, c.in) }

func TestConnectionsThatWaitMakeRoomForOthers(t *testing.T) {
	const most = 4
	addr, d := behindADoor(t, most, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") })
	silent := dial(t, addr) // says nothing
	var idle []callerConn
	for range most - 1 {
		c := dial(t, addr)
		if !c.asks("/") {
			t.Fatal("a request within the bound is not answered")
		}
		idle = append(idle, c)
	}
	for i := range 3 * most { // many more than there are places, one after the other
		if c := dial(t, addr); !c.asks("/") {
			t.Fatalf("connection %d more is not served", i+1)
		}
	}
	silent.cut()
	for _, c := range idle {
		c.cut()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.open > most {
		t.Errorf("%d connections are open, of at most %d", d.open, most)
	}
}

func TestConnectionsAtWorkAreNeverCutForOthers(t *testing.T) {
	const most = 3
	hold, working := make(chan struct{}), make(chan struct{})
	addr, _ := behindADoor(t, most, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/work" {
			working <- struct{}{}
			<-hold
		}
	})
	answered := make(chan bool, most)
	for range most {
		c := dial(t, addr)
		go func() { answered <- c.asks("/work") }()
		<-working
	}
	dial(t, addr).cut() // there is no place for it
	close(hold)
	for range most {
		if !<-answered {
			t.Error("a request at work was cut")
		}
	}
	if c := dial(t, addr); !c.asks("/") {
		t.Error("there is no place though all work is done")
	}
}
