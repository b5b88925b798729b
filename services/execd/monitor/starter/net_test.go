package starter

import (
	"maps"
	"testing"

	"berth/libcontainer"
	"berth/libcontainer/netns"
)

// TestOwnNet: a namespace of one's own is one that was made ahead, and what it was
// born with need not be set again.
func TestOwnNet(t *testing.T) {
	var s Starter
	t.Cleanup(s.net.close)
	config := func() *libcontainer.Config {
		c := &libcontainer.Config{Namespaces: libcontainer.PrivateNamespaces(), Sysctls: map[string]string{"net.ipv4.ip_forward": "1"}}
		for _, d := range netns.Defaults {
			c.Sysctls[d.Name] = d.Value
		}
		c.Sysctls["net.ipv4.ip_unprivileged_port_start"] = "7"
		return c
	}
	c := config()
	s.net.fill()
	spare := s.net.spare
	if spare == nil {
		t.Skip("SKIP: no network namespace can be made")
	}
	got, err := s.ownNet(c)
	if err != nil || got != spare || c.Namespaces.Net.Private {
		t.Fatalf("%v, %v; want the one that is spare", got, err)
	}
	got.Close()
	if want := map[string]string{"net.ipv4.ip_forward": "1", "net.ipv4.ip_unprivileged_port_start": "7"}; !maps.Equal(c.Sysctls, want) {
		t.Errorf("parameters left to set: %v, want %v", c.Sysctls, want)
	}
	got, err = s.ownNet(config()) // none is spare
	if err != nil || got == nil || got == spare {
		t.Fatalf("%v, %v; want a new one", got, err)
	}
	got.Close()
	c = config()
	c.Namespaces.Net = libcontainer.Namespace{Path: "/proc/self/ns/net"}
	if got, err = s.ownNet(c); err != nil || got == nil || c.Namespaces.Net.Path != "" || len(c.Sysctls) != len(config().Sysctls) {
		t.Fatalf("%v, %v; want another's, with all parameters left to set", got, err)
	}
	got.Close()
	for name, change := range map[string]func(n *libcontainer.Namespaces){
		"the host's":        func(n *libcontainer.Namespaces) { n.Net = libcontainer.Namespace{} },
		"of user namespace": func(n *libcontainer.Namespaces) { n.User.Private = true },
	} {
		c := config()
		change(&c.Namespaces)
		want := c.Namespaces
		if got, err := s.ownNet(c); got != nil || err != nil || c.Namespaces != want {
			t.Errorf("%s: %v, %v, %+v", name, got, err, c.Namespaces)
		}
	}
}
