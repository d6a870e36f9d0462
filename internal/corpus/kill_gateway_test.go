package corpus

// gatewayKills are the switches of what a session takes of the gateway.
var gatewayKills = []killed{
	{
		control: "what a connection holds is counted by its cost", kernel: "gvisor", cases: []string{"R01"},
		patches: []patch{{"internal/gateway/outbox.go", "return int64(buffer + segmentCost*(2+(n-1)/o.mss))", "return int64(min(n, buffer))"}},
	},
}
