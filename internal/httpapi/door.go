package httpapi

import (
	"container/list"
	"net"
	"net/http"
	"sync"
)

// A Door is a listener that bounds how many of its connections are open, so that
// the descriptors of sessions and of the store are never a client's. At the bound a
// new connection takes the place of the one that has waited for a request the
// longest; if all are at work it is closed instead.
//
// The server of its connections must be one of HTTPServer's, which tells the
// connections what they do. A listener for TLS goes around it.
type Door struct {
	net.Listener
	most int

	mu      sync.Mutex
	open    int
	waiting list.List // of *guest, those without a request: the longest first
}

// NewDoor returns a Door before l with at most most connections.
func NewDoor(l net.Listener, most int) *Door { return &Door{Listener: l, most: max(1, most)} }

// Accept waits for a connection for which there is a place.
func (d *Door) Accept() (net.Conn, error) {
	for {
		conn, err := d.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if g := d.enter(conn); g != nil {
			return g, nil
		}
		conn.Close()
	}
}

// enter gives conn a place, or returns nil.
func (d *Door) enter(conn net.Conn) *guest {
	d.mu.Lock()
	var longest *guest
	if e := d.waiting.Front(); d.open >= d.most && e != nil {
		longest = e.Value.(*guest)
		d.leave(longest)
	}
	var g *guest
	if d.open < d.most {
		g = &guest{Conn: conn, door: d}
		d.open++
		g.spot = d.waiting.PushBack(g)
	}
	d.mu.Unlock()
	if longest != nil {
		longest.Conn.Close()
	}
	return g
}

// leave gives back the place of g, once. The caller holds d.mu.
func (d *Door) leave(g *guest) {
	if g.gone {
		return
	}
	g.gone = true
	d.open--
	g.work()
}

// A guest is a connection with a place.
type guest struct {
	net.Conn
	door *Door

	// Guarded by door.mu.
	spot *list.Element // among those that wait; nil while it is at work
	gone bool
}

// work takes g from those that wait. The caller holds door.mu.
func (g *guest) work() {
	if g.spot != nil {
		g.door.waiting.Remove(g.spot)
		g.spot = nil
	}
}

// Close gives its place back.
func (g *guest) Close() error {
	g.door.mu.Lock()
	g.door.leave(g)
	g.door.mu.Unlock()
	return g.Conn.Close()
}

// noteState is an http.Server's ConnState.
func noteState(conn net.Conn, s http.ConnState) {
	if over, ok := conn.(interface{ NetConn() net.Conn }); ok { // TLS
		conn = over.NetConn()
	}
	g, ok := conn.(*guest)
	if !ok {
		return // of the unix socket, which only root reaches
	}
	g.door.mu.Lock()
	defer g.door.mu.Unlock()
	switch {
	case g.gone:
	case s == http.StateIdle && g.spot == nil:
		g.spot = g.door.waiting.PushBack(g)
	case s == http.StateActive:
		g.work()
	}
}
