package corpus

// readKills are the switches of what is refused as a result, and of the record of it.
var readKills = []killed{
	{
		control: "a result is read alike by all", kernel: "gvisor", cases: []string{"R40"},
		patches: []patch{{"internal/strictjson/strictjson.go", "\t\tif seen[name] {\n", "\t\tif seen[name] && depth < 0 {\n"}},
	},
	{
		control: "a result that is not taken is on record", kernel: "gvisor", cases: []string{"R40", "R41"},
		patches: []patch{{"internal/control/end.go", "Refused: o.refused, Repeated: o.repeated,", ""}},
	},
}
