package doctor

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"testing/synctest"
)

func TestWhatSpeaksTLSIsToldFromWhatDoesNot(t *testing.T) {
	nothing := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	plain := httptest.NewServer(nothing)
	defer plain.Close()
	encrypted := httptest.NewTLSServer(nothing)
	defer encrypted.Close()
	strict := httptest.NewUnstartedServer(nothing)
	strict.TLS = &tls.Config{MaxVersion: tls.VersionTLS12, ClientAuth: tls.RequireAnyClientCert}
	strict.StartTLS()
	defer strict.Close()
	for name, tc := range map[string]struct {
		at   string
		want bool
	}{
		"plain HTTP":           {plain.Listener.Addr().String(), false},
		"TLS":                  {encrypted.Listener.Addr().String(), true},
		"TLS for the few":      {strict.Listener.Addr().String(), true},
		"one that only closes": {answering(t, nil), false},
		"one that echoes less": {answering(t, []byte{21}), false},
		"another protocol":     {answering(t, []byte("SSH-2.0-x\r\n")), false},
		"almost a record":      {answering(t, []byte{21, 2, 0, 0, 2}), false},
		"no port":              {"127.0.0.1", false},
	} {
		if got := speaksTLS(t.Context(), tc.at); got != tc.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

// answering returns the address of a server that says b to whoever has spoken,
// and hangs up.
func answering(t *testing.T, b []byte) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-served })
	go func() {
		defer close(served)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Read(make([]byte, 1024))
			_, _ = c.Write(b)
			c.Close()
		}
	}()
	return l.Addr().String()
}

// A background server that ends while it is looked at is none, and one that has
// the directory and gives no answer is a failure.
func TestAServerThatEndsWhileItIsLookedAtIsNoFlaw(t *testing.T) {
	for name, looks := range map[string]int{"it has ended": 1, "it is about to": 5, "it hangs": 1 << 30} {
		t.Run(name, func(t *testing.T) {
			c := config(t, filepath.Join(t.TempDir(), "none"))
			synctest.Test(t, func(t *testing.T) {
				n := 0
				c.Holder = func() (bool, int, string, string, error) {
					n++
					return n <= looks, 77, "embedded", "", nil
				}
				s, err := askServer(t.Context(), c)
				if err != nil || s.held != (looks > 5) || (s.alive != nil) != (looks > 5) {
					t.Errorf("the server is %+v, error %v", s, err)
				}
				n = 0
				h := &host{server: known(server{held: true, pid: 77})}
				h.lookAtServices(context.WithoutCancel(t.Context()), c)
				if r, err := h.audit.get(); r.held != (looks > 5) || (err != nil) != (looks > 5) {
					t.Errorf("its record is %+v, error %v", r, err)
				}
			})
		})
	}
}
