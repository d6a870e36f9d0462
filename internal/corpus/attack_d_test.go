package corpus

import (
	"regexp"
)

// syscallAttacks are group D: system calls and the surface of the kernel.
var syscallAttacks = []attack{
	{
		id:    "D04",
		smoke: true,
		held:  true,
		code: sc + `
attr = ctypes.create_string_buffer(struct.pack('<IIIII', 2, 4, 8, 1, 0), 128)   # an array map
perf = ctypes.create_string_buffer(struct.pack('<IIQ', 1, 128, 0), 128)         # a software clock
print('$ARMED', flush=True)
sc(321, 0, attr, 128); sc(298, perf, 0, -1, -1, 0); sc(298, perf, -1, 0, -1, 0)
print('$HELD', flush=True); signal.pause()
`,
		judge:   kernelObjects(`^anon_inode:(bpf-|\[perf_event\])`),
		control: onBare(bare{}),
	},
	{id: "D01", missing: "its translation comes next"},
	{id: "D02", missing: "its translation comes next"},
	{id: "D05", missing: "its translation comes next"},
	{id: "D07", missing: "its translation comes next"},
	{id: "D08", missing: "its translation comes next"},
	{id: "D10", missing: "its translation comes next"},
	{id: "D11", missing: "its translation comes next"},
	{id: "D13", missing: "its translation comes next"},
	{id: "D14", missing: "its translation comes next"},
}

// sc calls the kernel by number.
const sc = `import ctypes, errno, os, signal, struct
L = ctypes.CDLL(None, use_errno=True)
def sc(n, *a):
    ctypes.set_errno(0); r = L.syscall(n, *a); print(n, r, errno.errorcode.get(ctypes.get_errno()), flush=True); return r
`

// kernelObjects finds a process of the sandbox that has a file of a forbidden kind
// open, by its link.
func kernelObjects(form string) func(*run) []finding {
	re := regexp.MustCompile(form)
	return func(r *run) (all []finding) {
		for _, t := range r.tasks {
			for _, f := range t.fds {
				if re.MatchString(f.link) || f.protocol != "" && re.MatchString(f.protocol) {
					all = append(all, found(escape, "process %d (%.40s) of the sandbox has %s %s", t.pid, t.cmd, f.link, f.protocol))
				}
			}
		}
		return all
	}
}
