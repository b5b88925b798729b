package engine

import (
	"testing"

	apiv1 "berth/proto/berth/api/v1"
)

func TestShapesOfSpares(t *testing.T) {
	spec := func(change func(*apiv1.ContainerSpec)) *apiv1.ContainerSpec {
		s := &apiv1.ContainerSpec{Image: "web", AutoRemove: true}
		change(s)
		return s
	}
	usual, ok := usualShape(spec(func(*apiv1.ContainerSpec) {}))
	if !ok || usual.rest != "" {
		t.Fatalf("the usual: %+v, %t", usual, ok)
	}
	for name, c := range map[string]struct {
		change func(*apiv1.ContainerSpec)
		same   bool
		built  bool
	}{
		"command": {func(s *apiv1.ContainerSpec) { s.Args, s.Entrypoint = []string{"x"}, []string{"y"} }, true, true},
		"limits":  {func(s *apiv1.ContainerSpec) { s.Resources = &apiv1.Resources{MemoryBytes: 1 << 20} }, true, true},
		"user": {func(s *apiv1.ContainerSpec) {
			s.User, s.Env, s.Labels = "7", []string{"A=b"}, map[string]string{"a": "b"}
		}, true, true},
		"directory": {func(s *apiv1.ContainerSpec) { s.WorkingDir = "/x" }, false, true},
		"security":  {func(s *apiv1.ContainerSpec) { s.Security = &apiv1.Security{Privileged: true} }, false, true},
		"sysctl":    {func(s *apiv1.ContainerSpec) { s.Sysctls = map[string]string{"net.x": "1"} }, false, true},
		"read-only": {func(s *apiv1.ContainerSpec) { s.ReadOnly = true }, false, true},
		"terminal":  {func(s *apiv1.ContainerSpec) { s.Tty = true }, false, false},
		"bind": {func(s *apiv1.ContainerSpec) {
			s.Mounts = []*apiv1.MountSpec{{Type: apiv1.MountType_MOUNT_TYPE_BIND, Source: "/a", Target: "/b"}}
		}, false, false},
		"name": {func(s *apiv1.ContainerSpec) { s.Name = "x" }, true, true},
		"port": {func(s *apiv1.ContainerSpec) {
			s.Network = &apiv1.NetworkSpec{Ports: []*apiv1.PortMapping{{ContainerPort: 80}}}
		}, true, true},
		"all ports":      {func(s *apiv1.ContainerSpec) { s.Network = &apiv1.NetworkSpec{PublishAll: true} }, true, true},
		"lasting":        {func(s *apiv1.ContainerSpec) { s.AutoRemove = false }, false, true},
		"user namespace": {func(s *apiv1.ContainerSpec) { s.UsernsMode = "private" }, false, false},
	} {
		got, ok := usualShape(spec(c.change))
		if !ok || (got == usual) != c.same || (got.rest != unbuilt) != c.built {
			t.Errorf("%s: %+v, %t", name, got, ok)
		}
		if again, _ := usualShape(spec(c.change)); again != got {
			t.Errorf("%s: two of the same differ: %+v, %+v", name, got, again)
		}
	}
	for name, change := range map[string]func(*apiv1.ContainerSpec){
		"host name": func(s *apiv1.ContainerSpec) { s.Hostname = "x" },
		"ports of no network": func(s *apiv1.ContainerSpec) {
			s.Network = &apiv1.NetworkSpec{Mode: "none", Ports: []*apiv1.PortMapping{{ContainerPort: 80}}}
		},
	} {
		if _, ok := usualShape(spec(change)); ok {
			t.Errorf("a container with its own %s is not for spares", name)
		}
	}
}
