package firecracker

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// serve answers every call on a socket as answer does, and returns the socket.
func serve(t *testing.T, dir string, answer http.HandlerFunc) string {
	t.Helper()
	// The server's end may have a short address where the client's is long.
	t.Chdir(dir)
	l, err := net.Listen("unix", "api.sock")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: answer}
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(l) }()
	t.Cleanup(func() { s.Close(); <-done })
	return filepath.Join(dir, "api.sock")
}

func TestRequestsAreAsFirecrackerDocumentsThem(t *testing.T) {
	var got []string
	c := Dial(serve(t, t.TempDir(), func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		if r.Method != http.MethodGet && (r.Header.Get("Content-Type") != "application/json" || r.ContentLength != int64(len(b))) {
			t.Errorf("%s %s: Content-Type %q, length %d of %d", r.Method, r.URL.Path, r.Header.Get("Content-Type"), r.ContentLength, len(b))
		}
		got = append(got, strings.TrimSpace(fmt.Sprintf("%s %s %s", r.Method, r.URL.Path, b)))
		switch r.URL.Path {
		case "/":
			io.WriteString(w, `{"app_name":"Firecracker","id":"vm-1","state":"Not started","vmm_version":"1.16.1"}`)
		default:
			w.WriteHeader(http.StatusNoContent)
		}
	}))
	ctx := t.Context()
	for _, err := range []error{
		c.PutSerial(ctx, Serial{SerialOutPath: "/serial"}),
		c.PutMachineConfig(ctx, MachineConfig{VCPUCount: 1, MemSizeMiB: 512}),
		c.PutBootSource(ctx, BootSource{KernelImagePath: "/vmlinux", InitrdPath: "/initrd", BootArgs: "quiet a=\"b c\""}),
		c.PutBootSource(ctx, BootSource{KernelImagePath: "/vmlinux"}),
		c.PutDrive(ctx, Drive{DriveID: "image", PathOnHost: "/disk.erofs", IsReadOnly: true}),
		c.PutVsock(ctx, Vsock{GuestCID: 3, UDSPath: "/v.sock"}),
		c.PutEntropy(ctx),
		c.Start(ctx),
		c.PatchVM(ctx, Paused),
		c.PatchVM(ctx, Resumed),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	info, err := c.Instance(ctx)
	if want := (InstanceInfo{"Firecracker", "vm-1", StateNotStarted, "1.16.1"}); err != nil || info != want {
		t.Errorf("Instance: %+v, %v", info, err)
	}
	want := []string{
		`PUT /serial {"serial_out_path":"/serial"}`,
		`PUT /machine-config {"vcpu_count":1,"mem_size_mib":512,"smt":false}`,
		`PUT /boot-source {"kernel_image_path":"/vmlinux","initrd_path":"/initrd","boot_args":"quiet a=\"b c\""}`,
		`PUT /boot-source {"kernel_image_path":"/vmlinux"}`,
		`PUT /drives/image {"drive_id":"image","path_on_host":"/disk.erofs","is_root_device":false,"is_read_only":true}`,
		`PUT /vsock {"guest_cid":3,"uds_path":"/v.sock"}`,
		`PUT /entropy {}`,
		`PUT /actions {"action_type":"InstanceStart"}`,
		`PATCH /vm {"state":"Paused"}`,
		`PATCH /vm {"state":"Resumed"}`,
		`GET /`,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestAnswersThatAreNotUnderstoodAreErrors(t *testing.T) {
	for name, tc := range map[string]struct {
		status     int
		body, want string
	}{
		"a refusal in the VMM's words":           {400, `{"fault_message":"no kernel"}`, "GET /: the VMM answers 400: no kernel"},
		"a refusal that is no JSON":              {500, "oops\n", `GET /: the VMM answers 500: "oops\n"`},
		"a refusal that goes on and on":          {400, `{"fault_message":"` + strings.Repeat("x", 50_000) + `"}`, "GET /: the VMM answers 400: " + strings.Repeat("x", 1000)},
		"another success than the due one":       {204, "", `GET /: the VMM answers 204: ""`},
		"a redirect":                             {302, "", `GET /: the VMM answers 302: ""`},
		"an unknown field":                       {200, `{"app_name":"F","id":"x","state":"Running","vmm_version":"1","more":1}`, "GET /: read the answer: unknown field `more`"},
		"a missing field":                        {200, `{"app_name":"F","id":"x","state":"Running"}`, "GET /: read the answer: missing field `vmm_version`"},
		"a field that only differs in case":      {200, `{"App_Name":"F"}`, "GET /: read the answer: unknown field `App_Name`"},
		"a field that comes twice":               {200, `{"id":"x","id":"y"}`, "GET /: read the answer: duplicate field `id`"},
		"something after the object":             {200, `{"app_name":"F","id":"x","state":"Running","vmm_version":"1"} {}`, "GET /: read the answer: something follows the JSON object"},
		"an answer that is longer than any":      {200, strings.Repeat(" ", maxAnswer+1), "GET /: an answer of more than 65536 bytes"},
		"an answer that is not an object at all": {200, `[]`, "GET /: read the answer: it is not a JSON object"},
	} {
		t.Run(name, func(t *testing.T) {
			c := Dial(serve(t, t.TempDir(), func(w http.ResponseWriter, r *http.Request) {
				w.WriteHeader(tc.status)
				io.WriteString(w, tc.body)
			}))
			_, err := c.Instance(t.Context())
			if err == nil || err.Error() != tc.want {
				t.Errorf("got %.2000v, want %s", err, tc.want)
			}
			var f *Fault
			if refused := tc.status != 200; errors.As(err, &f) != refused {
				t.Errorf("a Fault: %v, want %v", !refused, refused)
			}
		})
	}
}

func TestContentWhereNoneIsDueIsAnError(t *testing.T) {
	// net/http sends no body with a 204, so this server is of bytes.
	sock := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		http.ReadRequest(bufio.NewReader(conn))
		io.WriteString(conn, "HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\n{}")
	}()
	err = Dial(sock).Start(t.Context())
	<-done
	var f *Fault
	if !errors.As(err, &f) || f.Status != 200 {
		t.Errorf("got %v", err)
	}
}

func TestSocketMayLieDeeperThanAnAddressReaches(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 120))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	c := Dial(serve(t, dir, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNoContent) }))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := c.Ready(ctx); err != nil {
		t.Error(err)
	}
	if err := c.Start(ctx); err != nil {
		t.Error(err)
	}
}

func TestReadyEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gone := errors.New("the VMM exited")
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, gone)
		defer cancel()
		err := Dial(filepath.Join(t.TempDir(), "none")).Ready(ctx)
		if !errors.Is(err, gone) || !strings.Contains(err.Error(), "no such file") {
			t.Errorf("got %v", err)
		}
	})
}

func FuzzDecodeTakesOnlyWhatItWouldWrite(f *testing.F) {
	f.Add([]byte(`{"drive_id":"a","path_on_host":"/d","is_root_device":false,"is_read_only":true}`))
	f.Add([]byte(`{"drive_id":"a","drive_id":"b"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var d Drive
		if Decode(b, &d) != nil {
			return
		}
		for _, name := range []string{"drive_id", "path_on_host", "is_root_device", "is_read_only"} {
			if n := bytes.Count(b, []byte(name)); n < 1 && !bytes.Contains(b, []byte(`\u`)) {
				t.Errorf("accepted %q without %s", b, name)
			}
		}
	})
}
