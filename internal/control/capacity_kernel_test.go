package control

import (
	"testing"

	"github.com/enclave-run/enclave/internal/request"
	"github.com/enclave-run/enclave/internal/session"
)

// On each real backend a second session waits until the walls of both fit, and
// then runs.
func TestTheWallsOfAllSandboxesFitTheHost(t *testing.T) {
	for _, on := range kernels {
		t.Run(on.name, func(t *testing.T) {
			p, _ := onKernel(t, on)
			one := p.needOf(request.DefaultLimits(), 0)
			if least := request.DefaultLimits().MemoryMB << 20; one.memory < least || one.memory+one.disk < least+request.DefaultLimits().DiskMB<<20 || one.tasks == 0 {
				t.Fatalf("a session is counted with %+v, less than its limits", one)
			}
			p.queue.mu.Lock()
			p.queue.capacity.Memory = one.memory * 3 / 2
			p.queue.mu.Unlock()
			first, err := p.Create(t.Context(), caller, request.Request{Language: "bash", Code: "sleep 3600"})
			if err != nil {
				t.Fatal(err)
			}
			second, err := p.Create(t.Context(), caller, request.Request{Language: "bash", Code: "true"})
			if err != nil {
				t.Fatal(err)
			}
			await(t, p, first.ID, func(s session.Session, _ Update) bool { return s.Phase == session.Running })
			q, err := p.Queue(t.Context(), caller)
			if err != nil || len(q.Yours.Items) != 1 || q.Yours.Items[0].For != LackMemory {
				t.Errorf("the queue is %+v, %v", q, err)
			}
			if _, err := p.Teardown(t.Context(), caller, first.ID); err != nil {
				t.Fatal(err)
			}
			if s := await(t, p, second.ID, func(_ session.Session, u Update) bool { return u.End }); s.Outcome != session.Succeeded {
				t.Errorf("the second ended as %s/%s", s.Outcome, s.KillReason)
			}
		})
	}
}
