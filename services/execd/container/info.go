package container

import (
	"time"

	apiv1 "berth/proto/berth/api/v1"
	networkv1 "berth/proto/berth/network/v1"
)

// Info is everything about a container at one moment. Whoever has one reads it
// only; the messages in it are shared as well.
type Info struct {
	ID    string
	Name  string
	State State

	Spec *apiv1.ContainerSpec
	// What the image says, as it was at creation.
	ImageID string
	Image   *apiv1.ImageConfig
	// Volumes are the names and targets; the sources are imaged's to know.
	Volumes []*apiv1.MountPoint
	// IDBase is the first host id of its user namespace; 0: it has the host's.
	IDBase    uint32
	CreatedBy string
	CreatedAt time.Time
	// Pending: nobody has been told of it. Its record goes with the machine.
	Pending bool
	// Cut: the machine went down after its start had begun. Its record may have missed the rest.
	Cut bool

	// Of the present run, or the last one.
	Pid       int
	StartedAt time.Time
	Namespace *networkv1.Namespace
	Endpoints []*apiv1.EndpointInfo
	Hostname  string
	Command   []string
	Env       []string
	Cwd       string
	Mounts    []*apiv1.MountPoint
	Cgroup    string // name below the engine's parent
	Cgroups   []string
	Trace     []*apiv1.TraceStep
	Warnings  []string

	// Exit is how the last run ended; nil before the first end.
	Exit *ExitStatus
	// Runs counts exits, so that waiters can tell one from the next.
	Runs         uint64
	RestartCount int32
	// Stopped: somebody asked it to stop; it is not started again by itself.
	Stopped bool
}

// ExitStatus is how a run ended.
type ExitStatus struct {
	Code  int32
	OOM   bool
	Error string
	At    time.Time
}

// AutoRemove: the container goes with its first exit.
func (i *Info) AutoRemove() bool { return i.Spec.GetAutoRemove() }

// ShortID is what people read.
func (i *Info) ShortID() string { return i.ID[:12] }
