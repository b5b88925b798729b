package engine

import (
	"context"
	"errors"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"berth/internal/fault"
	"berth/internal/names"
	apiv1 "berth/proto/berth/api/v1"
	execv1 "berth/proto/berth/exec/v1"
	imagev1 "berth/proto/berth/image/v1"
	networkv1 "berth/proto/berth/network/v1"
	"berth/services/apid/job"
)

// parts are what a container is launched from.
type parts struct {
	rootfs  *imagev1.Rootfs
	network *networkv1.AttachResponse // nil for a container that is not started yet
}

// container is one being made.
type container struct {
	id   string
	spec *apiv1.ContainerSpec
	auth *apiv1.RegistryAuth
	job  *job.Job
	// announce makes known what stood by for it, before that is taken away; may be
	// nil.
	announce func()
	// late: started before it is on the disk, and confirmed then (run.confirm).
	late bool
}

func checkSpec(s *apiv1.ContainerSpec) error {
	switch {
	case s == nil || s.Image == "":
		return fault.InvalidArgument.Errorf("IMAGE_REQUIRED", "no image given")
	case s.Name != "" && !names.Valid(s.Name):
		return fault.InvalidArgument.Errorf("BAD_NAME", "container name %q does not match [a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}", s.Name).With("name", s.Name)
	}
	return nil
}

// prepare makes the root file system, after a pull if the image is absent and
// the pull policy allows it, or first of all if it demands it.
func (e *Engine) prepare(ctx context.Context, c container) (*imagev1.Rootfs, error) {
	if c.spec.Pull == apiv1.PullPolicy_PULL_POLICY_ALWAYS {
		if err := e.pullFor(ctx, c); err != nil {
			return nil, err
		}
	}
	rootfs, err := e.prepareOnce(ctx, c)
	missing := errors.Is(err, fault.NotFound) && fault.ReasonOf(err) == "IMAGE_NOT_FOUND"
	if !missing {
		return rootfs, err
	}
	switch c.spec.Pull {
	case apiv1.PullPolicy_PULL_POLICY_UNSPECIFIED, apiv1.PullPolicy_PULL_POLICY_MISSING:
		if err := e.pullFor(ctx, c); err != nil {
			return nil, err
		}
		return e.prepareOnce(ctx, c)
	}
	return nil, err
}

func (e *Engine) pullFor(ctx context.Context, c container) error {
	e.DropStandby(ctx)
	_, err := e.pull(ctx, c.job, &apiv1.ImageServicePullRequest{Reference: c.spec.Image, Platform: c.spec.Platform, Auth: c.auth})
	return err
}

func (e *Engine) prepareOnce(ctx context.Context, c container) (*imagev1.Rootfs, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	req := prepareRequest(c)
	var resp *imagev1.PrepareResponse
	err := c.job.Step("imaged prepare", "imaged", func() (err error) {
		// A new named volume gets a copy of what the image has there, which
		// may be much.
		ctx, cancel := unbroken(ctx, launchTime)
		defer cancel()
		resp, err = e.Backends.Rootfs().Prepare(ctx, req)
		return err
	})
	return resp.GetRootfs(), err
}

func prepareRequest(c container) *imagev1.PrepareRequest {
	req := &imagev1.PrepareRequest{
		ContainerId:  c.id,
		Image:        c.spec.Image,
		Platform:     c.spec.Platform,
		Ephemeral:    c.spec.AutoRemove,
		SyncLater:    c.late,
		ImageVolumes: true,
	}
	for _, m := range c.spec.Mounts {
		if m.Type == apiv1.MountType_MOUNT_TYPE_VOLUME {
			req.Volumes = append(req.Volumes, &imagev1.VolumeRequest{Name: m.Source, Target: m.Target, NoCopy: m.NoCopy})
		} else {
			req.CoveredTargets = append(req.CoveredTargets, m.Target)
		}
	}
	return req
}

// attach gives the container its network.
func (e *Engine) attach(ctx context.Context, c container, ports []*apiv1.PortMapping) (*networkv1.AttachResponse, error) {
	network, err := e.resolveNetwork(ctx, c.spec.Network)
	if err != nil {
		return nil, err
	}
	if ports != nil {
		network = &apiv1.NetworkSpec{ // a copy: the record keeps what the user wrote
			Mode: network.GetMode(), Ports: ports, Dns: network.GetDns(), DnsSearch: network.GetDnsSearch(),
			DnsOptions: network.GetDnsOptions(), ExtraHosts: network.GetExtraHosts(), Aliases: network.GetAliases(),
			Ip: network.GetIp(), MacAddress: network.GetMacAddress(), Expose: network.GetExpose(),
		}
	}
	req := attachRequest(c, network)
	var resp *networkv1.AttachResponse
	err = c.job.Step("netd attach", "netd", func() (err error) {
		ctx, cancel := unbroken(ctx, callTime)
		defer cancel()
		resp, err = e.Backends.Endpoints().Attach(ctx, req)
		if errors.Is(err, fault.ResourceExhausted) { // what stands by, or is still being given back, has addresses too
			e.HoldStandby(ctx)()
			resp, err = e.Backends.Endpoints().Attach(ctx, req)
		}
		return err
	})
	return resp, err
}

func attachRequest(c container, network *apiv1.NetworkSpec) *networkv1.AttachRequest {
	req := &networkv1.AttachRequest{
		ContainerId:   c.id,
		ContainerName: c.spec.Name,
		Hostname:      c.spec.Hostname,
		Network:       network,
		Ephemeral:     c.spec.AutoRemove,
	}
	if req.Hostname == "" {
		req.Hostname = c.id[:12]
	}
	return req
}

// resolveNetwork turns "container:NAME" into "container:ID": netd does not know
// containers' names.
func (e *Engine) resolveNetwork(ctx context.Context, n *apiv1.NetworkSpec) (*apiv1.NetworkSpec, error) {
	other, ok := strings.CutPrefix(n.GetMode(), "container:")
	if !ok {
		if n == nil {
			n = new(apiv1.NetworkSpec)
		}
		return n, nil
	}
	c, err := e.inspect(ctx, other)
	if err != nil {
		return nil, err
	}
	return &apiv1.NetworkSpec{
		Mode: "container:" + c.Id, Dns: n.Dns, DnsSearch: n.DnsSearch, DnsOptions: n.DnsOptions, ExtraHosts: n.ExtraHosts,
		Ports: n.Ports, Aliases: n.Aliases, Ip: n.Ip, MacAddress: n.MacAddress, Expose: n.Expose,
	}, nil
}

// allocate gets root file system and network side by side: the longer of the
// two counts, not the sum. Only "publish all ports" has to look at the image
// first. After an error the caller must abandon the container.
func (e *Engine) allocate(ctx context.Context, c container) (parts, error) {
	var p parts
	if c.spec.Network.GetPublishAll() {
		var err error
		if p.rootfs, err = e.prepare(ctx, c); err != nil {
			return p, err
		}
		ports := allPorts(c.spec.Network, p.rootfs.GetConfig().GetExposedPorts())
		p.network, err = e.attach(ctx, c, ports)
		return p, err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() (err error) { p.rootfs, err = e.prepare(ctx, c); return err })
	group.Go(func() (err error) { p.network, err = e.attach(ctx, c, nil); return err })
	return p, group.Wait()
}

// allPorts adds to what is published by hand an ephemeral host port for each
// exposed one.
func allPorts(n *apiv1.NetworkSpec, exposed []string) []*apiv1.PortMapping {
	ports := slices.Clone(n.Ports)
	for _, text := range slices.Concat(exposed, n.Expose) {
		number, protocol, _ := strings.Cut(text, "/")
		if protocol == "" {
			protocol = "tcp"
		}
		port, ok := parsePort(number)
		if !ok {
			continue // an image may say what it likes
		}
		if !slices.ContainsFunc(ports, func(p *apiv1.PortMapping) bool {
			return p.ContainerPort == port && (p.Protocol == protocol || p.Protocol == "" && protocol == "tcp")
		}) {
			ports = append(ports, &apiv1.PortMapping{ContainerPort: port, Protocol: protocol})
		}
	}
	if ports == nil {
		ports = []*apiv1.PortMapping{}
	}
	return ports
}

func parsePort(s string) (uint32, bool) {
	var n uint32
	for _, r := range s {
		if r < '0' || r > '9' || n > 65535 {
			return 0, false
		}
		n = n*10 + uint32(r-'0')
	}
	return n, n > 0 && n <= 65535
}

// abandon undoes the making of a container, in whatever state it is. launched
// says that execd may know of it: then execd goes first, and if it cannot be
// asked the rest stays, for the container may be running. The reconciler
// releases it once execd is back.
func (e *Engine) abandon(ctx context.Context, c container, launched bool, cause error) {
	if k := fault.KindOf(cause); k == fault.Unavailable || k == fault.DeadlineExceeded {
		e.wakeLater() // what we have no answer to may yet be done
	}
	ctx, cancel := lasting(ctx)
	defer cancel()
	log := e.Log.With("container", c.id)
	if launched {
		_, err := e.Backends.Launch().Remove(ctx, &execv1.RemoveRequest{Container: c.id, Force: true})
		if err != nil && !errors.Is(err, fault.NotFound) {
			log.Warn("half-made container left for the reconciler", "error", err)
			e.doomed.add(c.id)
			e.wakeLater()
			return
		}
	}
	e.gone.add(c.id)
	if err := e.release(ctx, c.id, true); err != nil {
		log.Warn("parts of a half-made container left for the reconciler", "error", err)
		e.wakeLater()
	}
}

// release gives back endpoint and root file system of a container without a record.
func (e *Engine) release(ctx context.Context, id string, anonymousVolumes bool) error {
	var group errgroup.Group // not WithContext: each goes on whatever the other says
	group.Go(func() error { return e.detach(ctx, id) })
	group.Go(func() error {
		_, err := e.Backends.Rootfs().Release(ctx, &imagev1.ReleaseRequest{ContainerId: id, AnonymousVolumes: anonymousVolumes})
		return err
	})
	return group.Wait()
}

func (e *Engine) detach(ctx context.Context, id string) error {
	_, err := e.Backends.Endpoints().Detach(ctx, &networkv1.DetachRequest{ContainerId: id})
	return err
}

// inspect finds a container by id, prefix or name.
func (e *Engine) inspect(ctx context.Context, name string) (*apiv1.Container, error) {
	resp, err := e.Backends.Containers().Inspect(ctx, &apiv1.InspectRequest{Container: name})
	return resp.GetContainer(), err
}
