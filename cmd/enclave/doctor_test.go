package main

import (
	"strings"
	"testing"

	"github.com/enclave-run/enclave/internal/testenv"
)

// Doctor holds a container to what a sandbox of gVisor is held to: what it needs of
// the host, its declared posture, the contract. What it is no boundary for, it says.
func TestDoctorHoldsOnDocker(t *testing.T) {
	t.Parallel()
	testenv.Need(t, "docker")
	env, _ := onGVisor(t)
	env = append(env, "ENCLAVE_BACKEND=docker", "ENCLAVE_DOCKER_HOST="+testenv.Docker(t))
	out, err := enclaveCommand(t, env, "doctor").CombinedOutput()
	if err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	for _, want := range []string{
		"yes  Enclave can make a group, set its limits, read them back and remove it.",
		"yes  The image that sandboxes start from is there and undamaged.",
		"seen: a container shares the host's kernel: it is not a security boundary",
		"posture of docker\n  but  Between a workload and this host is more than this host's own kernel.",
		"yes  A live sandbox's processes can do on the host exactly what they are declared to",
		"yes  A workload sees exactly what it is declared to",
		"yes  A sandbox reaches nothing but its way out.",
		"not looked at: docker needs none of it", // namespaces, of gVisor's platform
		" 0 do not,",
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("it does not say %q:\n%s", want, out)
		}
	}
}
