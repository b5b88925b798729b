package container

import (
	"berth/internal/fault"
	apiv1 "berth/proto/berth/api/v1"
)

// State is where a container is in its life.
type State string

// The states.
const (
	Created    State = "created"
	Starting   State = "starting"
	Running    State = "running"
	Paused     State = "paused"
	Exited     State = "exited"
	Restarting State = "restarting" // between an exit and the start its policy asks for
	Dead       State = "dead"       // damaged: can only be removed
	Removing   State = "removing"
	Gone       State = "gone" // removed; nobody finds it any more
)

// Event is what happens to a container.
type Event string

// The events.
const (
	Start       Event = "start"        // a launch begins
	Started     Event = "started"      // its command runs
	StartFailed Event = "start-failed" // it does not; the container is as before
	Exit        Event = "exit"         // its first process has ended
	Again       Event = "again"        // its first process has ended and will be started again
	GiveUp      Event = "give-up"      // it will not be started again after all
	Pause       Event = "pause"
	Unpause     Event = "unpause"
	Break       Event = "break" // its record or its resources are damaged
	Remove      Event = "remove"
	Removed     Event = "removed"
)

// transitions is the whole state machine: from a state, by an event, to a state.
// What is not here cannot happen.
var transitions = map[State]map[Event]State{
	Created:    {Start: Starting, Remove: Removing, Break: Dead},
	Starting:   {Started: Running, StartFailed: Exited, Exit: Exited, Break: Dead},
	Running:    {Exit: Exited, Again: Restarting, Pause: Paused, Break: Dead},
	Paused:     {Unpause: Running, Exit: Exited, Again: Restarting, Break: Dead},
	Exited:     {Start: Starting, Remove: Removing, Break: Dead},
	Restarting: {Start: Starting, GiveUp: Exited, Remove: Removing, Break: Dead},
	Dead:       {Remove: Removing},
	Removing:   {Removed: Gone},
}

// Next is the state that event leads to, or an error that says why not.
func (s State) Next(e Event) (State, error) {
	if next, ok := transitions[s][e]; ok {
		return next, nil
	}
	return "", illegal(s, e)
}

// illegal names the reason that a client can act on.
func illegal(s State, e Event) error {
	switch {
	case s == Removing || s == Gone:
		return fault.NotFound.Errorf("CONTAINER_NOT_FOUND", "the container is being removed")
	case e == Start && s.Active():
		return fault.FailedPrecondition.Errorf("CONTAINER_RUNNING", "the container is %s", s)
	case e == Remove && s.Active():
		return fault.FailedPrecondition.Errorf("CONTAINER_RUNNING", "the container is %s", s).
			Hint("stop it first, or remove it by force: `berth rm -f`")
	case e == Pause && s == Paused:
		return fault.FailedPrecondition.Errorf("CONTAINER_PAUSED", "the container is paused already")
	case e == Unpause && s == Running:
		return fault.FailedPrecondition.Errorf("CONTAINER_NOT_PAUSED", "the container is not paused")
	case e == Pause || e == Unpause:
		return fault.FailedPrecondition.Errorf("CONTAINER_NOT_RUNNING", "the container does not run, it is %s", s)
	case s == Dead:
		return fault.FailedPrecondition.Errorf("CONTAINER_DEAD", "the container is damaged and can only be removed")
	}
	return fault.FailedPrecondition.Errorf("CONTAINER_STATE", "%s is not possible while the container is %s", e, s)
}

// Up reports whether there is a process.
func (s State) Up() bool { return s == Running || s == Paused }

// Active reports whether the container needs its network.
func (s State) Active() bool { return s.Up() || s == Starting || s == Restarting }

// API is the state as clients see it: one that is starting is still as before
// for them.
func (s State) API() apiv1.ContainerState {
	switch s {
	case Created, Starting:
		return apiv1.ContainerState_CONTAINER_STATE_CREATED
	case Running:
		return apiv1.ContainerState_CONTAINER_STATE_RUNNING
	case Paused:
		return apiv1.ContainerState_CONTAINER_STATE_PAUSED
	case Exited:
		return apiv1.ContainerState_CONTAINER_STATE_EXITED
	case Restarting:
		return apiv1.ContainerState_CONTAINER_STATE_RESTARTING
	case Dead:
		return apiv1.ContainerState_CONTAINER_STATE_DEAD
	}
	return apiv1.ContainerState_CONTAINER_STATE_REMOVING
}
