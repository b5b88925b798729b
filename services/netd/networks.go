package netd

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/types/known/timestamppb"

	"berth/internal/fault"
	apiv1 "berth/proto/berth/api/v1"
	"berth/services/netd/bridge"
	"berth/services/netd/firewall"
	"berth/services/netd/ipam"
	"berth/services/netd/network"
)

// networkServer answers users, through apid.
type networkServer struct {
	apiv1.UnimplementedNetworkServiceServer
	*server
}

// List implements NetworkService.
func (s *networkServer) List(_ context.Context, r *apiv1.NetworkServiceListRequest) (*apiv1.NetworkServiceListResponse, error) {
	match, err := filter(r.GetFilters())
	if err != nil {
		return nil, err
	}
	all := slices.DeleteFunc(s.networks.List(), func(n *network.Network) bool {
		return !match(n) || n.Name <= r.GetPageToken()
	})
	resp := &apiv1.NetworkServiceListResponse{}
	if size := int(r.GetPageSize()); size > 0 && size < len(all) {
		all = all[:size]
		resp.NextPageToken = all[size-1].Name // lists are sorted by name
	}
	for _, n := range all {
		resp.Networks = append(resp.Networks, s.describe(n))
	}
	return resp, nil
}

// filter compiles "key=value" conditions; those of one key are alternatives.
func filter(conditions []string) (func(*network.Network) bool, error) {
	byKey := map[string][]func(*network.Network) bool{}
	for _, c := range conditions {
		key, value, ok := strings.Cut(c, "=")
		var test func(*network.Network) bool
		switch key {
		case "name":
			test = func(n *network.Network) bool { return strings.Contains(n.Name, value) }
		case "id":
			test = func(n *network.Network) bool { return strings.HasPrefix(n.ID, value) }
		case "driver":
			test = func(n *network.Network) bool { return n.Driver == value }
		case "label":
			name, want, exact := strings.Cut(value, "=")
			test = func(n *network.Network) bool {
				have, there := n.Labels[name]
				return there && (!exact || have == want)
			}
		}
		if !ok || test == nil {
			return nil, fault.InvalidArgument.Errorf("BAD_FILTER", "filter %q: want name=, id=, driver= or label=", c).With("filter", c)
		}
		byKey[key] = append(byKey[key], test)
	}
	return func(n *network.Network) bool {
		for _, tests := range byKey {
			if !slices.ContainsFunc(tests, func(test func(*network.Network) bool) bool { return test(n) }) {
				return false
			}
		}
		return true
	}, nil
}

// Inspect implements NetworkService.
func (s *networkServer) Inspect(_ context.Context, r *apiv1.NetworkServiceInspectRequest) (*apiv1.NetworkServiceInspectResponse, error) {
	n, err := s.networks.Find(r.GetNetwork())
	if err != nil {
		return nil, err
	}
	return &apiv1.NetworkServiceInspectResponse{Network: s.describe(n)}, nil
}

func (s *networkServer) describe(n *network.Network) *apiv1.Network {
	d := &apiv1.Network{Id: n.ID, Name: n.Name, Driver: n.Driver, Internal: n.Internal, Labels: n.Labels, Options: n.Options, BridgeName: n.Bridge}
	if !n.Created.IsZero() {
		d.CreatedAt = timestamppb.New(n.Created)
	}
	if n.Driver != network.DriverBridge {
		return d
	}
	d.Subnet, d.Gateway = n.Subnet.String(), n.Gateway.String()
	for _, e := range s.endpoints.List() {
		if e.Network == n.ID && !e.Standby {
			if d.Endpoints == nil {
				d.Endpoints = map[string]*apiv1.EndpointInfo{}
			}
			d.Endpoints[e.Container] = info(e, n)
		}
	}
	return d
}

// optionMTU is Docker's name for it; fingers and scripts carry over.
const optionMTU = "com.docker.network.driver.mtu"

// Create implements NetworkService.
func (s *networkServer) Create(_ context.Context, r *apiv1.NetworkServiceCreateRequest) (*apiv1.NetworkServiceCreateResponse, error) {
	rec, err := s.record(r)
	if err != nil {
		return nil, err
	}
	n, err := s.networks.Create(rec)
	if err != nil {
		return nil, err
	}
	if err := s.establish(n); err != nil {
		if n.Close() == nil { // else somebody was quick enough to use it
			s.dissolve(n)
		}
		return nil, err
	}
	s.events.Emit("network", "create", n.ID, map[string]string{"name": n.Name, "type": n.Driver})
	return &apiv1.NetworkServiceCreateResponse{Id: n.ID}, nil
}

// record turns a request into the record of a network.
func (s *networkServer) record(r *apiv1.NetworkServiceCreateRequest) (rec network.Record, err error) {
	if driver := cmp.Or(r.GetDriver(), network.DriverBridge); driver != network.DriverBridge {
		return rec, fault.Unimplemented.Errorf("NO_DRIVER", "network driver %s is not available: want bridge", driver).With("driver", driver)
	}
	if r.GetIpv6() || r.GetSubnet6() != "" {
		return rec, fault.Unimplemented.Errorf("NO_IPV6", "networks have no IPv6 yet")
	}
	rec = network.Record{Name: r.GetName(), Driver: network.DriverBridge, Internal: r.GetInternal(), Labels: r.GetLabels(), Options: r.GetOptions()}
	rec.Bridge = s.names.bridgeFor(network.RandomID())
	if rec.Subnet, err = s.subnet(r.GetSubnet()); err != nil {
		return rec, err
	}
	if text := r.GetGateway(); text != "" {
		if rec.Gateway, err = netip.ParseAddr(text); err != nil {
			return rec, fault.InvalidArgument.Errorf("BAD_ADDRESS", "gateway %q is not an IP address", text).With("gateway", text)
		}
	}
	if text := r.GetOptions()[optionMTU]; text != "" {
		if rec.MTU, err = strconv.Atoi(text); err != nil || rec.MTU < 68 || rec.MTU > 65535 {
			return rec, fault.InvalidArgument.Errorf("BAD_MTU", "mtu %q: want 68 to 65535", text)
		}
	}
	return rec, nil
}

// subnet reads a subnet, or cuts one from the pool that nobody uses.
func (s *networkServer) subnet(text string) (netip.Prefix, error) {
	if text != "" {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return p, fault.InvalidArgument.Errorf("BAD_SUBNET", "subnet %q is not of the form 10.1.2.0/24", text).With("subnet", text)
		}
		return p, nil
	}
	pool, err := netip.ParsePrefix(s.env.Config.Netd.SubnetPool)
	if err != nil {
		return pool, fault.InvalidArgument.Errorf("BAD_CONFIG", "netd.subnet_pool = %q: %w", s.env.Config.Netd.SubnetPool, err)
	}
	inUse, err := bridge.InUse(s.host)
	if err != nil {
		return pool, err
	}
	for _, n := range s.networks.List() {
		if n.Driver == network.DriverBridge {
			inUse = append(inUse, n.Subnet)
		}
	}
	return ipam.Cut(pool, s.env.Config.Netd.SubnetBits, inUse)
}

func (s *networkServer) establish(n *network.Network) error {
	if err := n.Up(s.host, s.mtu); err != nil {
		return err
	}
	return s.walls.Update(firewall.Elements{Networks: []firewall.Network{n.Wall()}}, firewall.Elements{})
}

// dissolve removes a closed network from rules, host and records.
func (s *networkServer) dissolve(n *network.Network) error {
	if err := s.walls.Update(firewall.Elements{}, firewall.Elements{Networks: []firewall.Network{n.Wall()}}); err != nil {
		return err
	}
	if err := bridge.Delete(s.host, n.Bridge); err != nil {
		return err
	}
	if err := s.networks.Remove(n.ID); err != nil {
		return err
	}
	s.events.Emit("network", "destroy", n.ID, map[string]string{"name": n.Name, "type": n.Driver})
	return nil
}

// Remove implements NetworkService.
func (s *networkServer) Remove(_ context.Context, r *apiv1.NetworkServiceRemoveRequest) (*apiv1.NetworkServiceRemoveResponse, error) {
	n, err := s.networks.Find(r.GetNetwork())
	if err != nil {
		return nil, err
	}
	if n.Predefined() {
		return nil, fault.FailedPrecondition.Errorf("NETWORK_PREDEFINED", "network %s is predefined and cannot be removed", n.Name).With("network", n.Name)
	}
	if err := n.Close(); err != nil {
		return nil, err
	}
	if err := s.dissolve(n); err != nil {
		return nil, err
	}
	return &apiv1.NetworkServiceRemoveResponse{}, nil
}

// Prune implements NetworkService: it removes networks nobody is attached to.
func (s *networkServer) Prune(_ context.Context, r *apiv1.NetworkServicePruneRequest) (*apiv1.NetworkServicePruneResponse, error) {
	match, err := filter(r.GetFilters())
	if err != nil {
		return nil, err
	}
	resp := &apiv1.NetworkServicePruneResponse{}
	for _, n := range s.networks.List() {
		if n.Predefined() || !match(n) || n.Close() != nil {
			continue
		}
		if err := s.dissolve(n); err != nil {
			return nil, err
		}
		resp.Names = append(resp.Names, n.Name)
	}
	return resp, nil
}

// errConnect is the answer to what this build cannot do yet.
var errConnect = fault.Unimplemented.Errorf("NO_CONNECT", "a container's networks cannot be changed while it exists").
	Hint("make it anew with --network")

// Connect implements NetworkService.
func (s *networkServer) Connect(context.Context, *apiv1.NetworkServiceConnectRequest) (*apiv1.NetworkServiceConnectResponse, error) {
	return nil, errConnect
}

// Disconnect implements NetworkService.
func (s *networkServer) Disconnect(context.Context, *apiv1.NetworkServiceDisconnectRequest) (*apiv1.NetworkServiceDisconnectResponse, error) {
	return nil, errConnect
}
