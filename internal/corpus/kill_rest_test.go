package corpus

const (
	policyFile = "internal/egress/policy.go"
	tableFile  = "internal/egress/address.go"
	dnsFile    = "internal/gateway/dns.go"
	watchFile  = "internal/backend/docker/watch.go"
)

var (
	// Every address, and every name, is as if a rule of the session named it.
	allAddresses = patch{policyFile, "\t\t}\n\t\treturn d\n\t}\n\tif r, ok := p.names[", "\t\t}\n\t\td.Reason, d.Rule, d.literal, d.named = Allowed, \"*\", a, true\n\t\treturn d\n\t}\n\tif r, ok := p.names["}
	allNames     = patch{policyFile, "\tfor up, ok := parent(host); ok;", "\tif t.Port != 0 {\n\t\td.Reason, d.Rule, d.named = Allowed, \"*\", true\n\t\treturn d\n\t}\n\tfor up, ok := parent(host); ok;"}
	allLookUps   = patch{policyFile, "\tif r, ok := p.ports[nameRule{name, false}]; ok {\n", "\td.Reason = Allowed\n\tif r, ok := p.ports[nameRule{name, false}]; ok {\n"}
	allPublic    = patch{tableFile, "func (t Table) Public(a netip.Addr) bool {\n", "func (t Table) Public(a netip.Addr) bool {\n\tif a.IsValid() {\n\t\treturn true\n\t}\n"}
)

// restKills are the switches of the groups about the network, limits, processes and
// what a sandbox says.
var restKills = []killed{
	{control: "addresses that no rule names are refused", kernel: "gvisor", cases: []string{"A02", "A07", "A16", "A23", "A29"}, patches: []patch{allAddresses}},
	{control: "names that no rule names are refused", kernel: "gvisor", cases: []string{"A01", "A19", "A20", "B05"}, patches: []patch{allNames, allLookUps}},
	{control: "addresses that are not public are not dialled", kernel: "gvisor", cases: []string{"A11", "A13", "A14"}, patches: []patch{allPublic}},
	{control: "addresses that are not public are not dialled, nor what no rule names", kernel: "docker", cases: []string{"A17", "B01", "B02", "B04"}, patches: []patch{allPublic, allAddresses}},
	{
		control: "each address of an answer is judged", kernel: "docker", cases: []string{"A13"},
		patches: []patch{{policyFile, "for _, a := range addrs {\n\t\tif !t.Public", "for _, a := range addrs[:1] {\n\t\tif !t.Public"}},
	},
	{
		control: "a rule is for its ports", kernel: "gvisor", cases: []string{"A22"},
		patches: []patch{{policyFile, "\tif r, ok := p.names[namePort{host, t.Port}]; ok {\n", "\tif r, ok := p.names[namePort{host, 80}]; ok {\n"}},
	},
	{
		control: "no question of a sandbox is passed on", kernel: "docker", cases: []string{"A01", "A08", "B05"},
		patches: []patch{{dnsFile, "\tcase len(q.Question) > 1:\n", "\tcase forward(ctx, s, asked.Name):\n\tcase len(q.Question) > 1:\n"}, {dnsFile, "\n// whyNot is", "\nfunc forward(ctx context.Context, s *serving, name string) bool {\n\t_, _ = s.gw.resolver.LookupNetIP(ctx, \"ip\", strings.TrimSuffix(name, \".\"))\n\treturn false\n}\n\n// whyNot is"}},
	},
	{control: "a session has so many names", kernel: "gvisor", cases: []string{"A08"}, patches: []patch{{"internal/gateway/names.go", "n.granted == maxNames", "n.granted == 100*maxNames"}}},
	{control: "a session has a budget of traffic", kernel: "gvisor", cases: []string{"A31"}, patches: []patch{{"internal/gateway/gateway.go", "s.in.Load()+s.out.Load() <= s.budget", "s.in.Load()+s.out.Load() <= 100*s.budget"}}},
	{control: "a record has so many rows", kernel: "docker", cases: []string{"A34"}, patches: []patch{{"internal/gateway/ledger.go", "len(l.list)+len(l.held) >= maxRows", "len(l.list)+len(l.held) >= 100*maxRows"}}},
	{
		control: "the host's count of tasks is a reason", kernel: "docker", cases: []string{"E01", "E02", "E13"},
		patches: []patch{
			{watchFile, "Value: tasks - w.threads, Evidence", "Value: 0 * (tasks - w.threads), Evidence"}, {watchFile, "w.inner.ForksRefused(); err == nil && n > 0", "w.inner.ForksRefused(); err == nil && n > 1<<40"},
			{watchFile, "Value: peak - guestTasks", "Value: 0 * (peak - guestTasks)"},
		},
	},
	{control: "the host's count of disk is a reason", kernel: "docker", cases: []string{"E05"}, patches: []patch{{watchFile, "Value: w.disk(), Evidence", "Value: 0 * w.disk(), Evidence"}}},
	{control: "shared memory has a size", kernel: "docker", cases: []string{"E04"}, patches: []patch{{dockerMake, "shmSize = 64 << 20", "shmSize = 4 << 30"}}},
	{control: "output is cut", kernel: "gvisor", cases: []string{"E08"}, patches: []patch{{"internal/control/live.go", "room := max - ", "room := 4*max - "}}},
	{control: "a result has a depth", kernel: "gvisor", cases: []string{"E16"}, patches: []patch{{"internal/wire/result.go", "strictjson.Check(b, MaxDepth)", "strictjson.Check(b, 100*MaxDepth)"}}},
	{
		control: "no workload leaves its memory in a file", kernel: "docker", cases: []string{"E19"},
		patches: []patch{{guestConfine, "syscall.Setrlimit(unix.RLIMIT_CORE, &syscall.Rlimit{})", "error(nil)"}, {dockerMake, `{Name: "core"}`, `{Name: "core", Soft: 1 << 30, Hard: 1 << 30}`}},
	},
	{control: "an organisation has a quota", kernel: "simulator", cases: []string{"E20"}, patches: []patch{{"internal/control/quota.go", "rate.NewLimiter(rate.Limit(q.PerMinute)/60, q.PerMinute)", "rate.NewLimiter(rate.Inf, 0)"}}},
	{control: "a sandbox has namespaces of its own", kernel: "docker", cases: []string{"F05"}, patches: []patch{{dockerMake, `IpcMode:        "private"`, `IpcMode:        "host"`}}},
	{
		control: "the first result counts", kernel: "gvisor", cases: []string{"G04"},
		patches: []patch{{"cmd/enclave-guest/output.go", "\tcase o.result:\n", "\tcase o.result && o.ended:\n"}, {"internal/wire/event.go", "case k == Result && r.result:", "case k == Result && r.exited:"}, {"internal/control/run.go", "if o.json == nil {", "if len(ev.Data) > 0 {"}},
	},
	{control: "bytes that are no text are kept", kernel: "gvisor", cases: []string{"G08"}, patches: []patch{{"internal/httpapi/stream.go", "if !utf8.Valid(b[:n]) {", "if n < 0 {"}}},
	{control: "usage is what the host counts", kernel: "docker", cases: []string{"G14"}, patches: []patch{{"internal/backend/local/watch/watch.go", "return backend.Usage{CPU: max(0, cpu-base), PeakMemory: peak}", "return backend.Usage{CPU: max(0, cpu-base) / 100, PeakMemory: peak}"}}},
}
