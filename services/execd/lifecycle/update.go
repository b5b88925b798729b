package lifecycle

import (
	"errors"

	"google.golang.org/protobuf/proto"

	"berth/internal/fault"
	"berth/libcontainer/cgroup"
	apiv1 "berth/proto/berth/api/v1"
	"berth/services/execd/container"
	"berth/services/execd/launch"
)

// Update changes limits, of a running container at once, and the restart policy.
// Limits that are zero stay as they are.
func (m *Manager) Update(c *container.Container, r *apiv1.Resources, restart *apiv1.RestartPolicy) error {
	c.Work.Lock()
	defer c.Work.Unlock()
	i := c.Info()
	spec := proto.CloneOf(i.Spec)
	if spec.Resources == nil {
		spec.Resources = new(apiv1.Resources)
	}
	merge(spec.Resources, r)
	if restart != nil {
		spec.Restart = restart
		if err := checkRestart(spec); err != nil {
			return err
		}
		if restarting(spec) && i.State.Active() && !restarting(i.Spec) {
			return fault.Unimplemented.Errorf("RESTART", "a running container cannot get a restart policy: stop it first")
		}
	}
	want, err := launch.Resources(spec.Resources, m.Builder.Defaults.PidsLimit)
	if err != nil {
		return err
	}
	if i.State.Up() && r != nil {
		err := m.withGroup(c, func(g *cgroup.Group) error { return g.Set(want) })
		switch {
		case errors.Is(err, cgroup.ErrBusy):
			return fault.FailedPrecondition.Errorf("RESOURCES", "change limits: %w", err)
		case errors.Is(err, cgroup.ErrInvalid):
			return fault.InvalidArgument.Errorf("RESOURCES", "change limits: %w", err)
		case err != nil:
			return groupError(c, "change limits", err)
		}
	}
	i, err = c.Edit(func(i *container.Info) error { i.Spec = spec; return nil })
	if err == nil {
		err = m.Records.Put(i, true)
	}
	if err == nil {
		m.Events.Emit("container", "update", i.ID, attributes(i))
	}
	return err
}

// merge copies what is set in r. A CPU number takes the place of quota and
// period, and they of it.
func merge(to, r *apiv1.Resources) {
	if r.GetNanoCpus() != 0 {
		to.CpuQuotaUs, to.CpuPeriodUs = 0, 0
	}
	if r.GetCpuQuotaUs() != 0 || r.GetCpuPeriodUs() != 0 {
		to.NanoCpus = 0
	}
	if r.GetMemoryBytes() != 0 && r.GetMemorySwapBytes() == 0 && to.MemorySwapBytes < r.MemoryBytes {
		to.MemorySwapBytes = 0
	}
	if r != nil {
		proto.Merge(to, r)
	}
}
