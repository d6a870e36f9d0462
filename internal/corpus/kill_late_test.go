package corpus

const wallFile = "internal/backend/local/watch/wall.go"

// lateKills are walls: without one, what a workload takes is a matter of when somebody
// looks.
var lateKills = []killed{
	{control: "the disk has a wall", kernel: "gvisor", cases: []string{"R60"}, patches: []patch{{wallFile, "return l.Disk + DiskRoom", "return l.Disk + 64*DiskRoom"}}},
	{control: "the disk has a wall", kernel: "docker", cases: []string{"R60"}, patches: []patch{{wallFile, "return l.Disk + DiskRoom", "return l.Disk + 64*DiskRoom"}}},
	{control: "memory has a wall", kernel: "gvisor", cases: []string{"R62"}, patches: []patch{{wallFile, "at := w.Allowed(l, l.Pids+w.Spare)", "at := w.Allowed(l, l.Pids+w.Spare) + 4<<30"}}},
	{control: "tasks have a wall", kernel: "docker", cases: []string{"R61"}, patches: []patch{{wallFile, "return l.Pids + w.Tasks", "return l.Pids + 1<<15"}}},
}
