package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

// topics are pages of help that belong to no command.
func topics() []*cobra.Command {
	return []*cobra.Command{{
		Use:   "exit-codes",
		Short: "What the exit statuses mean; they do not change",
		Long: fmt.Sprintf(`Exit statuses do not change between versions.

  enclave run
      the code's own status, if the code ended by itself
    %3d  the platform killed the session; its reason is on stderr
    %3d  Enclave failed before or beside the code: nothing is said of the code
    128+ a signal interrupted enclave: 130 SIGINT, 143 SIGTERM; the session is torn down

  every other command
      0  done
    %3d  not done, or a check failed; stderr says why and what to do
      2  of audit witness alone: it could not ask, and nothing is known
    128+ a signal interrupted enclave`, statusKilled, statusPlatform, statusFailed),
	}, {
		Use:   "environment",
		Short: "Which environment variables there are",
		Long: `A flag wins over its variable.

  ENCLAVE_BASE_URL   the control plane to drive: http://127.0.0.1:8090. Without it, the
                     one on this host's state directory, which is started if needed
  ENCLAVE_API_KEY    the credential for it, or else
  ENCLAVE_TOKEN      a JSON web token
  ENCLAVE_TLS_FINGERPRINT
                     of its certificate, if that is the server's own: serve prints it
  ENCLAVE_CA_FILE    the authority of its certificate, if the host does not trust it
  ENCLAVE_STATE      --state
  ENCLAVE_BACKEND    --backend
  NO_COLOR           no colours, also on a terminal

Those of a program that a backend runs on (ENCLAVE_DOCKER_HOST, ENCLAVE_QEMU and
others) stand beside its flag in the help of each command, those of the control
plane in ` + "`enclave serve --help`" + `, and those by which several control planes are
compared (ENCLAVE_PARITY_...) in ` + "`enclave parity --help`" + `.`,
	}}
}
