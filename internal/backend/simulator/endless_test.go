package simulator

import (
	"io"
	"testing"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/wire"
)

// TestEndlessModelsEndWithTheirSandbox destroys sandboxes whose code would go on
// for ever, once it has said that it runs.
func TestEndlessModelsEndWithTheirSandbox(t *testing.T) {
	for name, code := range map[string]string{
		"sleep":    "print('here')\nimport time\ntime.sleep(100000)\n",
		"output":   "while True:\n    print('here')\n",
		"waiting":  "while True:\n    print('here')\n    time.sleep(0)\n",
		"attempts": "print('here')\nwhile True:\n    try: urlopen('http://evil.example.com/')\n    except Exception: pass\n",
	} {
		t.Run(name, func(t *testing.T) {
			c := start(t)
			p, err := c.client.Start(t.Context(), wire.StartRequest{Language: "python", Code: code})
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			for e := (wire.Event{}); e.Kind != wire.Stdout; {
				if e, err = p.Next(); err != nil {
					t.Fatal(err)
				}
			}
			if err := c.b.Destroy(t.Context(), testID); err != nil {
				t.Error(err)
			}
			for err == nil {
				_, err = p.Next()
			}
			if err == io.EOF {
				t.Error("the process ended in order")
			}
		})
	}
}

func TestEachLimitHasItsCause(t *testing.T) {
	for name, tc := range map[string]struct {
		language, code string
		want           backend.Cause
	}{
		"fork bomb":           {"python", "import os\nwhile True:\n    os.fork()\n", backend.PidsLimit},
		"fork bomb caught":    {"python", "import os\nwhile True:\n    try:\n        os.fork()\n    except Exception:\n        pass\n", backend.PidsLimit},
		"threads":             {"python", "import threading\nfor i in range(100):\n    threading.Thread(target=f).start()\n", backend.PidsLimit},
		"bash fork bomb":      {"bash", ":(){ :|:& };:", backend.PidsLimit},
		"one large string":    {"python", "x = b'x' * (1 << 30)\n", backend.MemoryLimit},
		"a list that grows":   {"python", "x = []\nwhile True:\n    x.append(b'x' * 1000000)\n", backend.MemoryLimit},
		"a counted bomb":      {"python", "import os\nfor _ in range(100000):\n    os.fork()\n", backend.PidsLimit},
		"a bytearray":         {"python", "x = bytearray(10**9)\n", backend.MemoryLimit},
		"small things":        {"python", "x = []\nfor i in range(10**9):\n    x.append(i)\n", backend.MemoryLimit},
		"one large print":     {"python", "print('x' * (1 << 30))\n", backend.MemoryLimit},
		"busy arithmetic":     {"python", "x = 0\nwhile 1:\n    x = x * 3 + 1\n", backend.CPULimit},
		"endless loop":        {"python", "while True: pass\n", backend.CPULimit},
		"node's endless loop": {"node", "while (true) {}\n", backend.CPULimit},
		"bash's endless loop": {"bash", "while true; do :; done\n", backend.CPULimit},
		"a file that grows":   {"python", "f = open('/tmp/x', 'wb')\nwhile True:\n    f.write(b'x' * 65536)\n", backend.DiskLimit},
		"a file too large":    {"python", "open('/work/x', 'w').write('x' * 2000000)\n", backend.DiskLimit},
	} {
		t.Run(name, func(t *testing.T) {
			c := start(t)
			if o := c.run(wire.StartRequest{Language: tc.language, Code: tc.code}); !o.Cut {
				t.Errorf("the process ended in order: %+v", o)
			}
			e := c.exit()
			if e.Cause != tc.want || e.Observed <= 0 {
				t.Errorf("got %+v, want cause %d", e, tc.want)
			}
		})
	}
}
