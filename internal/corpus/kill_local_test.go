package corpus

// localKills are those of the host's users and files.
var localKills = []killed{
	{control: "what /proc tells of the host's users is hidden", kernel: "docker", cases: []string{"R20"}, patches: []patch{{dockerMake, `"/proc/key-users", `, ``}}},
}
