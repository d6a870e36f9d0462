package corpus

// attemptKills are the switches of what is on record, and paid for, before it
// happens.
var attemptKills = []killed{
	{
		control: "a name has its row before it is asked for", kernel: "gvisor", cases: []string{"R10"},
		patches: []patch{{"internal/gateway/flow.go", "\tif err := s.ledger.take(to); err != nil {\n\t\treturn nil, err\n\t}\n", "\tfull := s.ledger.take(to)\n"}, {"internal/gateway/flow.go", "\td := f.decision.Pin(addrs, s.gw.table)\n", "\tif full != nil {\n\t\treturn nil, full\n\t}\n\td := f.decision.Pin(addrs, s.gw.table)\n"}},
	},
	{
		control: "questions pay", kernel: "gvisor", cases: []string{"R11"},
		patches: []patch{{"internal/gateway/gateway.go", "return s.count(way, n+questionHeaders)", "return s.count(way, 0*n)"}},
	},
	{
		control: "every extension of the encrypted names' range hides one", kernel: "gvisor", cases: []string{"R12"},
		patches: []patch{{"internal/egress/hello.go", "return kind >= top && kind != renegotiationInfo", "return kind == 0xfe0d && top != renegotiationInfo"}},
	},
}
