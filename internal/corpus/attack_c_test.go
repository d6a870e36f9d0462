package corpus

// fileAttacks are group C: files, /proc, /sys.
var fileAttacks = []attack{
	{
		id:    "C01",
		smoke: true,
		// The image has an /etc/shadow of its own, which may be read; the flag is in
		// a file that only the host has.
		code: `
print('$ARMED', flush=True)
for p in ('/etc/shadow', '$FLAG'):
    try: print(open(p).read())
    except OSError as e: print(p, e.errno)
`,
		control: onBare(bare{}),
	},
	{
		id:    "C14",
		smoke: true,
		code: `
import os
print('$ARMED', flush=True)
for p in ('/$NONCE', '/usr/bin/python3', '/etc/passwd', '/etc/ld.so.preload', '/lib/$NONCE.so', '/usr/bin/env', '/.enclave/enclave-guest'):
    try: open(p, 'a').write('x'); print('WROTE', p)
    except OSError as e: print(p, e.errno)
`,
		control: onBare(bare{image: true}),
	},
	{id: "C02", missing: "its translation comes next"},
	{id: "C04", missing: "its translation comes next"},
	{id: "C05", missing: "its translation comes next"},
	{id: "C07", missing: "its translation comes next"},
	{id: "C08", missing: "its translation comes next"},
	{id: "C10", missing: "its translation comes next"},
	{id: "C11", missing: "its translation comes next"},
	{id: "C13", missing: "its translation comes next"},
	{id: "C16", missing: "its translation comes next"},
	{id: "C17", missing: "its translation comes next"},
}
