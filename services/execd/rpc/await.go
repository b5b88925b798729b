package rpc

import (
	"sync"

	"berth/internal/fault"
	apiv1 "berth/proto/berth/api/v1"
	"berth/services/execd/container"
	"berth/services/execd/lifecycle"
)

// awaiting has the clients that attached to a container before its start, by
// the container's id.
type awaiting struct {
	mu      sync.Mutex
	clients map[string]*early
}

// early is such a client. Who takes it out of awaiting owns the client's far end.
type early struct {
	client  *lifecycle.Client
	started chan *container.Info // nil: the start failed
}

func (a *awaiting) add(id string, c *lifecycle.Client) (*early, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.clients[id] != nil {
		return nil, fault.FailedPrecondition.Errorf("ATTACH_WAITS", "another client waits for the container to start").
			Hint("attach once it runs")
	}
	if a.clients == nil {
		a.clients = map[string]*early{}
	}
	e := &early{client: c, started: make(chan *container.Info, 1)}
	a.clients[id] = e
	return e, nil
}

// take gives the client to a start; nil when none waits.
func (a *awaiting) take(id string) *early {
	a.mu.Lock()
	defer a.mu.Unlock()
	e := a.clients[id]
	delete(a.clients, id)
	return e
}

// drop is for a client that waits no longer.
func (a *awaiting) drop(id string, e *early) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.clients[id] == e {
		delete(a.clients, id)
		e.client.Far.Close()
	}
}

// attachFirst serves a client that attaches to the next start of a container.
func (s *containerService) attachFirst(stream attachStream, c *container.Container, open *apiv1.AttachRequest_Open) error {
	st, client, err := newClient(open.Attach)
	if err != nil {
		return err
	}
	defer st.Close()
	id := c.Info().ID
	e, err := s.awaiting.add(id, client)
	if err != nil {
		client.Far.Close()
		return err
	}
	defer s.awaiting.drop(id, e)
	if err := stream.Send(&apiv1.AttachResponse{Message: &apiv1.AttachResponse_Attached{Attached: true}}); err != nil {
		return err
	}
	select {
	case i := <-e.started:
		if i == nil {
			return fault.FailedPrecondition.Errorf("NOT_STARTED", "container %s did not start", c.Info().Name)
		}
		return s.serveContainer(stream.Context(), c, i, st, open.Attach, attachEnd{stream})
	case <-stream.Context().Done():
		return stream.Context().Err()
	}
}
