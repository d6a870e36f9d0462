package corpus

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/testenv/stranger"
)

// localAttacks are those of group R about the host's users and files.
var localAttacks = []attack{
	{
		id: "R20",
		code: `
print('$ARMED', flush=True)
for p in ('key-users', 'keys', 'locks', 'partitions', 'diskstats', 'swaps', 'softirqs', 'zoneinfo', 'buddyinfo', 'consoles'):
    try: print(open('/proc/' + p).read())
    except OSError as e: print(p, e.errno)
`,
		prepare: userWithKeys,
		judge:   usersOfTheHost,
		control: onBare(bare{}),
	},
}

// userWithKeys has a user of the host whom nobody else is have a keyring, for the
// time of the run.
func userWithKeys(r *run) error {
	r.user = 0x60000000 + rand.IntN(1<<24)
	stop, made := make(chan struct{}), make(chan error, 1)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		err := stranger.As(r.user, func() {
			_, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_USER_KEYRING, true)
			made <- err
			<-stop
		})
		if err != nil {
			made <- err
		}
	}()
	r.afterwards(func() { close(stop); <-gone })
	if err := <-made; err != nil {
		return fmt.Errorf("make a keyring: %w", err)
	}
	if b, err := os.ReadFile("/proc/key-users"); err != nil || !bytes.Contains(b, fmt.Appendf(nil, "%d:", r.user)) {
		return fmt.Errorf("the host does not name user %d, who has a key: %w", r.user, err)
	}
	return nil
}

// usersOfTheHost judges R20.
func usersOfTheHost(r *run) (all []finding) {
	if strings.Contains(r.stdout(), fmt.Sprintf("%d:", r.user)) {
		all = append(all, found(hostLeak, "the workload can read which users of the host have keys"))
	}
	disks, err := os.ReadFile("/proc/partitions")
	if err != nil {
		return append(all, found(infra, "%v", err))
	}
	if len(bytes.TrimSpace(disks)) > 0 && strings.Contains(r.stdout(), string(disks)) {
		all = append(all, found(hostLeak, "the workload can read which disks the host has"))
	}
	return all
}
