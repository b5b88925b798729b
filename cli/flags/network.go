package flags

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"berth/cli/apiv1"
)

func (c *Container) networking() error {
	n := c.spec.Network
	n.Mode = c.network
	if n.Mode == "default" {
		n.Mode = ""
	}
	for _, p := range c.publish {
		m, err := Publish(p)
		if err != nil {
			return err
		}
		n.Ports = append(n.Ports, m...)
	}
	for _, e := range c.expose {
		ports, proto, err := portRange("--expose", e, e)
		if err != nil {
			return err
		}
		for p := ports[0]; p <= ports[1]; p++ {
			n.Expose = append(n.Expose, fmt.Sprintf("%d/%s", p, proto))
		}
	}
	for _, h := range n.ExtraHosts {
		name, ip, ok := strings.Cut(h, ":")
		if !ok {
			name, ip, ok = strings.Cut(h, "=")
		}
		if _, err := netip.ParseAddr(strings.Trim(ip, "[]")); !ok || name == "" || err != nil && ip != "host-gateway" {
			return fmt.Errorf("--add-host: %q is not HOST:IP", h)
		}
	}
	for _, d := range n.Dns {
		if _, err := netip.ParseAddr(d); err != nil {
			return fmt.Errorf("--dns: %q is not an IP address", d)
		}
	}
	return nil
}

// Publish reads -p: [[IP:][HOST]:]CONTAINER[/PROTOCOL], where HOST and CONTAINER may be ranges of the same length.
func Publish(s string) ([]*apiv1.PortMapping, error) {
	rest, ip := s, ""
	if strings.HasPrefix(rest, "[") {
		end := strings.Index(rest, "]:")
		if end < 0 {
			return nil, fmt.Errorf("--publish: %q is not [[IP:]HOST:]CONTAINER", s)
		}
		ip, rest = rest[1:end], rest[end+2:]
	} else if strings.Count(rest, ":") == 2 {
		ip, rest, _ = strings.Cut(rest, ":")
	}
	if ip != "" {
		if _, err := netip.ParseAddr(ip); err != nil {
			return nil, fmt.Errorf("--publish: %q in %q is not an IP address", ip, s)
		}
	}
	host, container, two := strings.Cut(rest, ":")
	if !two {
		host, container = "", rest
	}
	inside, proto, err := portRange("--publish", s, container)
	if err != nil {
		return nil, err
	}
	outside := [2]int{}
	if host != "" {
		if outside, _, err = portRange("--publish", s, host); err != nil {
			return nil, err
		}
		if outside[1]-outside[0] != inside[1]-inside[0] {
			return nil, fmt.Errorf("--publish: ranges of different length in %q", s)
		}
	}
	var out []*apiv1.PortMapping
	for i := 0; i <= inside[1]-inside[0]; i++ {
		m := &apiv1.PortMapping{HostIp: ip, ContainerPort: uint32(inside[0] + i), Protocol: proto}
		if host != "" {
			m.HostPort = uint32(outside[0] + i)
		}
		out = append(out, m)
	}
	return out, nil
}

// portRange reads "80", "80-90", each with an optional /tcp or /udp.
func portRange(flag, whole, s string) (r [2]int, proto string, err error) {
	s, proto, has := strings.Cut(s, "/")
	if !has {
		proto = "tcp"
	}
	if proto != "tcp" && proto != "udp" {
		return r, "", fmt.Errorf("%s: protocol %q in %q is not tcp or udp", flag, proto, whole)
	}
	a, b, two := strings.Cut(s, "-")
	if !two {
		b = a
	}
	for i, t := range []string{a, b} {
		n, err := strconv.ParseUint(t, 10, 16)
		if err != nil || n == 0 {
			return r, "", fmt.Errorf("%s: %q in %q is not a port (1 to 65535)", flag, t, whole)
		}
		r[i] = int(n)
	}
	if r[0] > r[1] {
		return r, "", fmt.Errorf("%s: empty range in %q", flag, whole)
	}
	return r, proto, nil
}
