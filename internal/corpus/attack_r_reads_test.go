package corpus

// resultAttacks are those on what a result says, which others read.
var resultAttacks = []attack{
	{
		id: "R40",
		code: resultFrame + `
print('$ARMED', flush=True)
for b in (b'{"a":1,"a":2}', b'[' + b'7' * 5001 + b']', b'1e999', b'"\\ud800"', b'[' * 300 + b']' * 300):
    print(frame(b))
enclave.result({'a': 1})
`,
		ends:    &ends{},
		judge:   collected(`{"a":1}`, 5, 0),
		breaks:  spoof,
		control: instead("enclave.result({'a': 2})"),
	},
	{
		id: "R41",
		code: resultFrame + `
print('$ARMED', flush=True)
enclave.result({'a': 1})
for i in range(1200): frame(b'{"a":2}')
`,
		ends:    &ends{},
		judge:   collected(`{"a":1}`, 0, 1000),
		breaks:  spoof,
		control: instead("enclave.result({'a': 2})"),
	},
}

// collected wants the session's result to be this JSON, and the record to tell of
// so many results that were refused, and that came after the first.
func collected(want string, refused, repeated uint64) func(*run) []finding {
	return func(r *run) []finding {
		out := resultIs(want)(r)
		for _, e := range r.events {
			if d, err := e.Detail(); e.Type == "result_collected" && (err != nil || d.Refused != refused || d.Repeated != repeated) {
				out = append(out, found(auditBreak, "the record tells of %d results refused and %d repeated, not %d and %d: %v", d.Refused, d.Repeated, refused, repeated, err))
			}
		}
		return out
	}
}
