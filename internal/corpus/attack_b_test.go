package corpus

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/enclave-run/enclave"
)

// metadataAttacks are group B: the services that give a cloud's credentials to who
// asks on the right address. All of them answer in the network of the controls.
var metadataAttacks = []attack{
	{
		id:    "B01",
		smoke: true,
		code: `
import urllib.request as u
print('$ARMED', flush=True)
u.urlopen('http://169.254.169.254/latest/meta-data/iam/security-credentials/$NONCE', timeout=3)
`,
		ends:    &ends{outcome: enclave.Failed, denied: []string{"tcp 169.254.169.254 80 not_allowed 1"}},
		breaks:  lateral,
		control: onBare(bare{sinks: true}),
	},
	{
		id: "B02",
		code: `
import urllib.request as u
print('$ARMED', flush=True)
u.urlopen(u.Request('http://169.254.169.254/latest/api/token?$NONCE', method='PUT', headers={'X-aws-ec2-metadata-token-ttl-seconds': '60'}), timeout=3)
`,
		ends:    &ends{outcome: enclave.Failed, denied: []string{"tcp 169.254.169.254 80 not_allowed 1"}},
		breaks:  lateral,
		control: onBare(bare{sinks: true}),
	},
	{
		id:       "B04",
		receipts: 3,
		code: `
import socket
for a in ('fd00:ec2::254', 'fd20:ce::254', 'fd00:ec2::23'):
    print('$ARMED', flush=True)
    try: socket.create_connection((a, 80), 2).sendall(b'GET /$NONCE HTTP/1.0\r\n\r\n')
    except OSError as e: print(a, e)
`,
		ends:    &ends{denied: []string{"tcp fd00:ec2::254 80 not_allowed 1", "tcp fd20:ce::254 80 not_allowed 1", "tcp fd00:ec2::23 80 not_allowed 1"}},
		breaks:  lateral,
		control: onBare(bare{sinks: true}),
	},
	{
		id:       "B05",
		receipts: 5,
		code: `
import urllib.request as u
for h in ('metadata.google.internal', 'metadata', 'metadata.goog', 'instance-data', 'kubernetes.default.svc'):
    print('$ARMED', flush=True)
    try: u.urlopen(u.Request('http://%s/computeMetadata/v1/$NONCE' % h, headers={'Metadata-Flavor': 'Google'}), timeout=2)
    except Exception as e: print(h, e)
`,
		ends: &ends{denied: []string{
			"dns metadata.google.internal not_allowed 1", "dns metadata not_allowed 1", "dns metadata.goog not_allowed 1",
			"dns instance-data not_allowed 1", "dns kubernetes.default.svc not_allowed 1",
		}},
		breaks:  lateral,
		control: onBare(bare{sinks: true}),
	},
	{
		// The control plane has what a pod has: variables of the cluster, and the
		// token of an account in a file.
		id:      "B07",
		prepare: plantAccount,
		code: `
import glob, os
print('$ARMED', flush=True)
print([k + '=' + v for k, v in os.environ.items() if 'KUBERNETES' in k])
for f in glob.glob('/var/run/secrets/**', recursive=True) + glob.glob('/run/secrets/**', recursive=True):
    try: print(f, open(f).read())
    except OSError as e: print(f, e)
`,
		judge: func(r *run) (all []finding) {
			for _, s := range []string{"KUBERNETES_" + strings.ToUpper(r.nonce), "/run/secrets/" + ours} {
				if strings.Contains(r.stdout(), s) {
					all = append(all, found(hostLeak, "the workload sees %s of the host", s))
				}
			}
			return all
		},
		breaks:  hostLeak,
		control: onBare(bare{}),
	},
	{
		id: "B08",
		code: `
import urllib.request as u
print('$ARMED', flush=True)
print(u.urlopen('http://169.254.169.254/$NONCE', timeout=2).read())
`,
		ends:    &ends{outcome: enclave.Failed, denied: []string{"tcp 169.254.169.254 80 not_allowed 1"}},
		breaks:  lateral,
		control: onBare(bare{sinks: true}),
	},
}

// plantAccount gives this host the account of a pod. Its token is the run's flag.
func plantAccount(r *run) error {
	name := "KUBERNETES_" + strings.ToUpper(r.nonce)
	if err := os.Setenv(name, r.flag); err != nil {
		return err
	}
	r.cleanup(func() { os.Unsetenv(name) })
	dir := filepath.Join("/run/secrets", ours+r.nonce)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("plant an account: %w", err)
	}
	r.cleanup(func() { os.RemoveAll(dir); os.Remove(filepath.Dir(dir)) }) // the latter only if nobody else has anything there
	return os.WriteFile(filepath.Join(dir, "token"), []byte(r.flag), 0o644)
}
