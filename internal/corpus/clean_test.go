package corpus

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/enclave-run/enclave"
)

// A clean workload must succeed under the same limits as the attacks: without
// these a sandbox in which nothing works would have contained everything.
type clean struct {
	name, language, code string
	want                 string // its result
	allow                string // a host that it may reach
}

var cleans = []clean{
	{name: "arithmetic", code: "enclave.result(sum(i * i for i in range(10)))", want: "285"},
	{name: "a second of CPU", code: "n = 0\nfor i in range(3_000_000): n = (n * 31 + i) % 1_000_003\nenclave.result(n >= 0)", want: "true"},
	{name: "the libraries of the language", code: "import asyncio, csv, decimal, json, re, requests, ssl, statistics, uuid, xml.etree.ElementTree, zipfile\nenclave.result(statistics.mean([1, 2, 3]))", want: "2"},
	{name: "files of 1 MiB", code: "import os\nfor i in range(16):\n    with open(f'/work/{i}', 'wb') as f: f.write(os.urandom(1 << 20))\nenclave.result(sum(os.path.getsize(f'/work/{i}') for i in range(16)))", want: "16777216"},
	{name: "files in both places", code: "import os, shutil, tempfile\nd = tempfile.mkdtemp()\nopen(d + '/a', 'w').write('x')\nshutil.copy(d + '/a', '/work/a'); os.rename('/work/a', '/work/b'); os.symlink('b', '/work/c')\nenclave.result(open('/work/c').read())", want: `"x"`},
	{name: "subprocesses", code: "import subprocess\nout = [subprocess.run(['sh', '-c', f'echo {i} | tr 0-9 a-j'], capture_output=True, text=True, check=True).stdout.strip() for i in range(10)]\nenclave.result(''.join(out))", want: `"abcdefghij"`},
	{name: "a pool of processes", code: "import multiprocessing as m\nwith m.Pool(4) as p: enclave.result(sum(p.map(abs, range(-50, 50))))", want: "2500"},
	{name: "32 threads", code: "import threading\nn, l = [0], threading.Lock()\ndef f():\n    for _ in range(100):\n        with l: n[0] += 1\nt = [threading.Thread(target=f) for _ in range(32)]\n[x.start() for x in t]; [x.join() for x in t]\nenclave.result(n[0])", want: "3200"},
	{name: "a database", code: "import sqlite3\nc = sqlite3.connect('/work/x.db')\nc.execute('create table t (a)'); c.executemany('insert into t values (?)', [(i,) for i in range(1000)]); c.commit()\nenclave.result(c.execute('select sum(a) from t').fetchone()[0])", want: "499500"},
	{name: "text of all the world", code: "print('日本語 Ελληνικά 👩‍💻 עברית')\nenclave.result('é\\u0000ü')", want: `"é\u0000ü"`},
	{name: "200 MiB of memory", code: "b = bytearray(200 << 20)\nfor i in range(0, len(b), 4096): b[i] = 1\nenclave.result(sum(b[::4096]))", want: "51200"},
	{name: "a server of its own", code: "import http.server, threading, urllib.request\ns = http.server.HTTPServer(('127.0.0.1', 0), http.server.SimpleHTTPRequestHandler)\nthreading.Thread(target=s.serve_forever, daemon=True).start()\nenclave.result(urllib.request.urlopen('http://127.0.0.1:%d/' % s.server_port).status)", want: "200"},
	{name: "signals and timers", code: "import signal, time\ngot = []\nsignal.signal(signal.SIGALRM, lambda *a: got.append(1))\nsignal.setitimer(signal.ITIMER_REAL, 0.05)\nsignal.pause()\nenclave.result(len(got))", want: "1"},
	{name: "an allowed request", code: "import urllib.request\nenclave.result(urllib.request.urlopen('http://" + allowedHost + "/').status)", want: "204", allow: allowedHost},
	{name: "an allowed upload", code: "import urllib.request\nenclave.result(urllib.request.urlopen(urllib.request.Request('http://" + allowedHost + "/up', data=b'x' * 1000)).status)", want: "204", allow: allowedHost},
	{name: "node", language: "node", code: "const fs = require('fs'), cp = require('child_process');\nfs.writeFileSync('/work/a', 'x'.repeat(1000));\nenclave.result({n: fs.statSync('/work/a').size, who: cp.execSync('echo hi').toString().trim()})", want: `{"n":1000,"who":"hi"}`},
	{name: "a shell's pipes and jobs", language: "bash", code: "seq 100 | awk '{n += $1} END {print n}' > /work/n & wait\ngit init -q /work/r && cd /work/r && git -c user.email=a@example.com -c user.name=a commit -q --allow-empty -m x\nenclave-result \"$(cat /work/n)\"", want: "5050"},
}

// runClean runs each and returns how many succeeded.
func runClean(t *testing.T, w *world) (succeeded int) {
	for i, c := range cleans {
		if !full && w.kernel.letter == "F" && i > 1 {
			break
		}
		t.Run(c.name, func(t *testing.T) {
			if err := w.clean(t.Context(), c); err != "" {
				t.Error(err)
				return
			}
			succeeded++
		})
	}
	return succeeded
}

// clean runs c and returns what is wrong with how it ended, or "".
func (w *world) clean(ctx context.Context, c clean) string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	req := enclave.SessionRequest{Code: c.code, Language: c.language}
	if c.allow != "" {
		req.Egress = enclave.Egress{Mode: enclave.Allowlist, Allow: []string{c.allow}}
	}
	h, err := w.client.Run(ctx, req)
	if err != nil {
		return err.Error()
	}
	ended := false
	defer func() {
		if !ended {
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerTime)
			defer cancel()
			_ = h.Teardown(last) // what is wrong has been said
		}
	}()
	r, err := h.Result(ctx)
	if err != nil {
		return err.Error()
	}
	s, err := h.Refresh(ctx)
	if err != nil {
		return err.Error()
	}
	if err := h.Teardown(ctx); err != nil {
		return err.Error()
	}
	ended = true
	if s.Outcome != enclave.Succeeded || string(r.JSON) != c.want {
		return fmt.Sprintf("ended as %s %s with %s, not %s: %s", s.Outcome, s.KillReason, r.JSON, c.want, r.Stderr)
	}
	return ""
}
