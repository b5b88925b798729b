package netd

import (
	"cmp"
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"berth/internal/daemon"
	"berth/internal/events"
	"berth/internal/fault"
	"berth/libcontainer/netlink"
	"berth/libcontainer/netns"
	apiv1 "berth/proto/berth/api/v1"
	networkv1 "berth/proto/berth/network/v1"
	"berth/services/netd/dns"
	"berth/services/netd/endpoint"
	"berth/services/netd/network"
	"berth/services/netd/portmap"
)

// server is what both services stand on.
type server struct {
	env       *daemon.Env
	host      *netlink.Conn
	networks  *network.Registry
	endpoints *endpoint.Manager
	walls     walls
	names     names
	events    *events.Ring
	mtu       int

	mu       sync.Mutex
	warnings []string
}

// endpointServer answers the engine.
type endpointServer struct {
	networkv1.UnimplementedEndpointServiceServer
	*server
}

// Attach implements EndpointService.
func (s *endpointServer) Attach(ctx context.Context, r *networkv1.AttachRequest) (*networkv1.AttachResponse, error) {
	if r.GetContainerId() == "" {
		return nil, fault.InvalidArgument.Errorf("MISSING_FIELD", "container_id is missing")
	}
	mode := cmp.Or(r.GetNetwork().GetMode(), network.Default)
	if mode == "default" { // as Docker also calls it
		mode = network.Default
	}
	if err := checkDNS(r.GetNetwork()); err != nil {
		return nil, err
	}
	if of, shared := strings.CutPrefix(mode, "container:"); shared {
		return s.withoutEndpoint(r, networkv1.Namespace_KIND_CONTAINER, of)
	}
	n, err := s.networks.Find(mode)
	if err != nil {
		return nil, err
	}
	switch n.Driver {
	case network.Host:
		return s.withoutEndpoint(r, networkv1.Namespace_KIND_HOST, "")
	case network.None:
		return s.withoutEndpoint(r, networkv1.Namespace_KIND_PRIVATE, "")
	}
	hosts, err := hostLines(r.GetNetwork().GetExtraHosts(), n.Gateway)
	if err != nil {
		return nil, err
	}
	request, err := s.request(r, n)
	if err != nil {
		return nil, err
	}
	e, err := s.endpoints.Attach(ctx, request)
	if err != nil {
		return nil, err
	}
	if !e.Standby {
		s.connected(n, e)
	}
	settings := s.dns(r.GetNetwork(), false)
	settings.Hosts = hosts
	return &networkv1.AttachResponse{
		Namespace: &networkv1.Namespace{Kind: networkv1.Namespace_KIND_HELD, Id: e.Slot.Namespace},
		Endpoints: []*apiv1.EndpointInfo{info(e, n)},
		Dns:       settings,
		Warnings:  s.currentWarnings(),
	}, nil
}

// withoutEndpoint answers for containers that need none of netd's things.
func (s *endpointServer) withoutEndpoint(r *networkv1.AttachRequest, kind networkv1.Namespace_Kind, id string) (*networkv1.AttachResponse, error) {
	spec := r.GetNetwork()
	onHost := kind == networkv1.Namespace_KIND_HOST
	resp := &networkv1.AttachResponse{Namespace: &networkv1.Namespace{Kind: kind, Id: id}, Dns: s.dns(spec, onHost)}
	if len(spec.GetPorts()) > 0 || spec.GetPublishAll() {
		resp.Warnings = append(resp.Warnings, "published ports are discarded in network mode "+spec.GetMode())
	}
	if kind == networkv1.Namespace_KIND_PRIVATE {
		resp.Sysctls = map[string]string{}
		for _, sysctl := range netns.Defaults { // namespaces that execd holds have them from birth
			resp.Sysctls[sysctl.Name] = sysctl.Value
		}
	}
	gateway := netip.Addr{}
	switch n, err := s.networks.Find(network.Default); {
	case onHost:
		gateway = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	case err == nil:
		gateway = n.Gateway
	}
	var err error
	resp.Dns.Hosts, err = hostLines(spec.GetExtraHosts(), gateway)
	return resp, err
}

// request checks what came over the wire.
func (s *server) request(r *networkv1.AttachRequest, n *network.Network) (endpoint.Request, error) {
	spec := r.GetNetwork()
	req := endpoint.Request{Container: r.GetContainerId(), Name: r.GetContainerName(), Network: n, Aliases: spec.GetAliases(), Standby: r.GetStandby()}
	var err error
	if ip := spec.GetIp(); ip != "" {
		if req.IP, err = netip.ParseAddr(ip); err != nil || !req.IP.Is4() {
			return req, fault.InvalidArgument.Errorf("BAD_ADDRESS", "ip %q is not an IPv4 address", ip).With("ip", ip)
		}
	}
	if mac := spec.GetMacAddress(); mac != "" {
		if req.MAC, err = net.ParseMAC(mac); err != nil || len(req.MAC) != 6 || req.MAC[0]&1 != 0 {
			return req, fault.InvalidArgument.Errorf("BAD_ADDRESS", "mac_address %q is not the MAC address of one interface", mac).With("mac_address", mac)
		}
	}
	req.Ports, err = s.mappings(spec)
	return req, err
}

// mappings are the ports asked for, and with publish_all every exposed one that
// was not.
func (s *server) mappings(spec *apiv1.NetworkSpec) ([]endpoint.Mapping, error) {
	any, err := netip.ParseAddr(s.env.Config.Netd.PublishAddress)
	if err != nil || !any.Is4() {
		return nil, fault.InvalidArgument.Errorf("BAD_CONFIG", "netd.publish_address = %q: want an IPv4 address", s.env.Config.Netd.PublishAddress)
	}
	type service struct {
		port     uint16
		protocol portmap.Protocol
	}
	published := map[service]bool{}
	var list []endpoint.Mapping
	for _, p := range spec.GetPorts() {
		m, err := mapping(p, any)
		if err != nil {
			return nil, err
		}
		list = append(list, m)
		published[service{m.ContainerPort, m.Protocol}] = true
	}
	if !spec.GetPublishAll() {
		return list, nil
	}
	for _, text := range spec.GetExpose() {
		port, protocol, err := parseExposed(text)
		if err != nil {
			return nil, err
		}
		if !published[service{port, protocol}] {
			published[service{port, protocol}] = true
			list = append(list, endpoint.Mapping{HostIP: any, ContainerPort: port, Protocol: protocol})
		}
	}
	return list, nil
}

func mapping(p *apiv1.PortMapping, any netip.Addr) (m endpoint.Mapping, err error) {
	if p.GetContainerPort() < 1 || p.GetContainerPort() > 65535 {
		return m, fault.InvalidArgument.Errorf("BAD_PORT", "container port %d: want 1 to 65535", p.GetContainerPort())
	}
	if p.GetHostPort() > 65535 {
		return m, fault.InvalidArgument.Errorf("BAD_PORT", "host port %d: want 0 to 65535", p.GetHostPort())
	}
	m = endpoint.Mapping{HostIP: any, HostPort: uint16(p.GetHostPort()), ContainerPort: uint16(p.GetContainerPort())}
	if text := p.GetHostIp(); text != "" {
		if m.HostIP, err = netip.ParseAddr(text); err != nil {
			return m, fault.InvalidArgument.Errorf("BAD_ADDRESS", "host ip %q is not an IP address", text).With("host_ip", text)
		}
		if m.HostIP = m.HostIP.Unmap(); !m.HostIP.Is4() {
			return m, fault.Unimplemented.Errorf("NO_IPV6", "ports cannot be published on the IPv6 address %s yet", text).With("host_ip", text)
		}
	}
	m.Protocol, err = portmap.ParseProtocol(p.GetProtocol())
	return m, err
}

// parseExposed reads "80/tcp" or "80".
func parseExposed(text string) (uint16, portmap.Protocol, error) {
	number, protocol, _ := strings.Cut(text, "/")
	p, err := portmap.ParseProtocol(protocol)
	if err != nil {
		return 0, "", err
	}
	a, err := netip.ParseAddrPort("0.0.0.0:" + number)
	if err != nil || a.Port() == 0 {
		return 0, "", fault.InvalidArgument.Errorf("BAD_PORT", "exposed port %q: want PORT or PORT/PROTOCOL", text)
	}
	return a.Port(), p, nil
}

// dns merges what the container asks for, the configuration, and the host.
func (s *server) dns(spec *apiv1.NetworkSpec, onHost bool) *networkv1.DnsConfig {
	asked := dns.Settings{Nameservers: spec.GetDns(), Search: spec.GetDnsSearch(), Options: spec.GetDnsOptions()}
	configured := dns.Settings{Nameservers: s.env.Config.Netd.DNS, Search: s.env.Config.Netd.DNSSearch}
	merged := asked.Over(configured.Over(dns.Host(onHost)))
	return &networkv1.DnsConfig{Nameservers: merged.Nameservers, Search: merged.Search, Options: merged.Options}
}

// checkDNS refuses what would become more than one word of resolv.conf.
func checkDNS(spec *apiv1.NetworkSpec) error {
	for _, server := range spec.GetDns() {
		if _, err := netip.ParseAddr(server); err != nil {
			return fault.InvalidArgument.Errorf("BAD_DNS", "dns server %q is not an IP address", server).With("dns", server)
		}
	}
	for _, word := range slices.Concat(spec.GetDnsSearch(), spec.GetDnsOptions()) {
		if word == "" || strings.ContainsAny(word, " \t\r\n;#") {
			return fault.InvalidArgument.Errorf("BAD_DNS", "dns search domain or option %q is not one word", word).With("dns", word)
		}
	}
	return nil
}

// hostLines turns "name:address" into lines of /etc/hosts. The address
// "host-gateway" is gateway.
func hostLines(extra []string, gateway netip.Addr) ([]string, error) {
	var lines []string
	for _, text := range extra {
		name, address, found := strings.Cut(text, ":")
		if !found {
			name, address, found = strings.Cut(text, "=")
		}
		if address == "host-gateway" {
			address = gateway.String()
		}
		ip, err := netip.ParseAddr(strings.Trim(address, "[]"))
		if err != nil || !found || name == "" || strings.ContainsAny(name, " \t\n#") {
			return nil, fault.InvalidArgument.Errorf("BAD_HOST", "extra host %q: want NAME:ADDRESS", text).With("extra_host", text)
		}
		lines = append(lines, ip.String()+" "+name)
	}
	return lines, nil
}

func (s *server) connected(n *network.Network, e *endpoint.Endpoint) {
	s.events.Emit("network", "connect", n.ID, map[string]string{"name": n.Name, "type": n.Driver, "container": e.Container})
}

// Use implements EndpointService.
func (s *endpointServer) Use(ctx context.Context, r *networkv1.UseRequest) (*networkv1.UseResponse, error) {
	ports, err := s.mappings(&apiv1.NetworkSpec{Ports: r.GetPorts()})
	if err != nil {
		return nil, err
	}
	used, err := s.endpoints.Use(ctx, r.GetContainerId(), r.GetContainerName(), ports)
	if err != nil {
		return nil, err
	}
	resp := &networkv1.UseResponse{}
	for _, e := range s.endpoints.Of(r.GetContainerId()) {
		n, err := s.networks.Find(e.Network)
		if err != nil {
			continue // it goes
		}
		if used != nil && e.ID == used.ID {
			s.connected(n, e)
		}
		resp.Endpoints = append(resp.Endpoints, info(e, n))
	}
	return resp, nil
}

// Detach implements EndpointService.
func (s *endpointServer) Detach(ctx context.Context, r *networkv1.DetachRequest) (*networkv1.DetachResponse, error) {
	held := s.endpoints.Of(r.GetContainerId())
	if err := s.endpoints.Detach(ctx, r.GetContainerId()); err != nil {
		return nil, err
	}
	for _, e := range held {
		if e.Standby {
			continue // nobody was told of it
		}
		s.events.Emit("network", "disconnect", e.Network, map[string]string{"container": r.GetContainerId()})
	}
	return &networkv1.DetachResponse{}, nil
}

// List implements EndpointService.
func (s *endpointServer) List(context.Context, *networkv1.ListRequest) (*networkv1.ListResponse, error) {
	resp := &networkv1.ListResponse{}
	for _, e := range s.endpoints.List() {
		n, err := s.networks.Find(e.Network)
		if err != nil {
			continue // removed between the two look-ups
		}
		resp.Endpoints = append(resp.Endpoints, &networkv1.Endpoint{
			ContainerId:   e.Container,
			Info:          info(e, n),
			NamespaceId:   e.Slot.Namespace,
			CreatedMs:     e.Created.UnixMilli(),
			HostInterface: e.Slot.Port,
		})
	}
	return resp, nil
}

func info(e *endpoint.Endpoint, n *network.Network) *apiv1.EndpointInfo {
	i := &apiv1.EndpointInfo{
		Network:      n.Name,
		NetworkId:    n.ID,
		EndpointId:   e.ID,
		IpAddress:    e.Slot.IP.String(),
		PrefixLength: int32(n.Subnet.Bits()),
		Gateway:      n.Gateway.String(),
		MacAddress:   e.Slot.MAC.String(),
		Aliases:      e.Aliases,
	}
	if n.Internal {
		i.Gateway = ""
	}
	for _, m := range e.Ports {
		i.Ports = append(i.Ports, &apiv1.PortMapping{
			HostIp:        m.HostIP.String(),
			HostPort:      uint32(m.HostPort),
			ContainerPort: uint32(m.ContainerPort),
			Protocol:      string(m.Protocol),
		})
	}
	return i
}
