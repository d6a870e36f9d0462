package httpapi

import (
	"net/http"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/auth"
	"github.com/enclave-run/enclave/internal/control"
)

func (s *Server) queue(w http.ResponseWriter, r *http.Request, c auth.Caller) error {
	if done, err := s.head(w, r, c); done {
		return err
	}
	q, err := s.plane.Queue(r.Context(), c)
	if err != nil {
		return err
	}
	s.write(w, r, http.StatusOK, "application/json", publicQueue(q))
	return nil
}

func publicQueue(q control.Queue) enclave.Queue {
	out := enclave.Queue{
		Running: q.Running, MaxRunning: q.MaxRunning, Waiting: q.Waiting,
		Yours: enclave.OwnQueue{
			Running: q.Yours.Running, Waiting: q.Yours.Waiting, Concurrent: q.Yours.Concurrent,
			Items: []enclave.QueuedSession{},
		},
	}
	for _, i := range q.Yours.Items {
		out.Yours.Items = append(out.Yours.Items, enclave.QueuedSession{ID: i.ID, Position: i.Position, WaitingMS: i.Waiting.Milliseconds(), WaitsFor: string(i.For)})
	}
	return out
}
