package netd

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"

	"berth/internal/daemon"
	"berth/internal/events"
	"berth/internal/fault"
	"berth/internal/journal"
	"berth/internal/warm"
	"berth/libcontainer/netlink"
	"berth/libcontainer/netns"
	apiv1 "berth/proto/berth/api/v1"
	networkv1 "berth/proto/berth/network/v1"
	"berth/services/netd/bridge"
	"berth/services/netd/conntrack"
	"berth/services/netd/endpoint"
	"berth/services/netd/firewall"
	"berth/services/netd/ipam"
	"berth/services/netd/network"
	"berth/services/netd/portmap"
	"berth/services/netd/slot"
)

// run builds the parts, restores what the last process left, and serves.
func run(ctx context.Context, env *daemon.Env) error {
	host, err := netlink.Dial()
	if err != nil {
		return err
	}
	defer host.Close()
	durable, err := journal.Open(env.StateDir, journal.Options{})
	if err != nil {
		return err
	}
	defer durable.Close()
	volatile, err := journal.Open(env.RunDir, journal.Options{})
	if err != nil {
		return err
	}
	defer volatile.Close()

	names := namesOf(env.Config.Root, env.Config.Instance(), env.Config.Named("berth"))
	networks, err := network.Open(durable)
	if err != nil {
		return err
	}
	if err := ensureDefault(networks, host, names.bridge, env.Config.Netd.DefaultSubnet); err != nil {
		return err
	}
	walls, err := openWalls(env.Config.Netd.Firewall, names)
	if err != nil {
		return err
	}
	defer walls.Close()

	flows, err := conntrack.Open()
	if err != nil {
		return err
	}
	defer flows.Close()

	var endpoints *endpoint.Manager
	client := netns.NewClient(env.SocketPath(daemon.NetnsSocket), func() { endpoints.DiscardPool() })
	defer client.Close()
	log := env.Log
	endpoints, err = endpoint.New(endpoint.Parts{
		Journal:  volatile,
		Networks: networks,
		Host:     host,
		Maker:    slot.NewMaker(host, client, walls, names.portPrefix),
		Reaper:   slot.NewReaper(host, client, walls, names.group, log.Named("reaper")),
		Walls:    walls,
		Ports:    portmap.NewTable(),
		Flows:    conntrack.NewSweeper(flows, env.Log.Named("conntrack")),
		Log:      log,
		PoolSize: env.Config.Netd.PoolSize,
		Group:    names.group,
	})
	if err != nil {
		return err
	}
	s := &server{env: env, host: host, networks: networks, endpoints: endpoints, walls: walls, names: names, events: events.New("netd")}
	if s.mtu, err = mtu(env.Config.Netd.MTU, host); err != nil {
		return err
	}
	if err := bringUp(ctx, s); err != nil {
		return err
	}

	warm.Messages(new(networkv1.AttachRequest), new(networkv1.AttachResponse), new(networkv1.UseRequest), new(networkv1.DetachRequest), new(apiv1.Event))
	aside, cancel := context.WithCancel(ctx)
	var background sync.WaitGroup
	background.Go(func() { endpoints.Run(aside) })
	background.Go(func() { walls.Watch(aside, log.Named("firewall")) })
	background.Go(func() { s.watchLinks(aside) })
	err = env.Serve(ctx, daemon.NetdSocket, daemon.ServerOptions{}, func(g *grpc.Server) {
		networkv1.RegisterEndpointServiceServer(g, &endpointServer{server: s})
		apiv1.RegisterNetworkServiceServer(g, &networkServer{server: s})
		events.Register(g, s.events)
		daemon.RegisterInfo(g, "netd", s.describe)
	})
	endpoints.DropStandby()
	cancel()
	background.Wait()
	if err == nil && len(endpoints.List()) == 0 {
		s.tidy()
	}
	return err
}

// tidy takes bridges and rules away when netd stops and no container needs
// them: a host without containers is left as it was. The next start makes them
// anew.
func (s *server) tidy() {
	if s.walls.Firewall != nil {
		if err := s.walls.Remove(); err != nil {
			s.env.Log.Warn("rules not removed", "error", err)
		}
	}
	for _, n := range s.networks.List() {
		if n.Driver != network.DriverBridge {
			continue
		}
		if err := bridge.Delete(s.host, n.Bridge); err != nil {
			s.env.Log.Warn("bridge not removed", "network", n.Name, "error", err)
		}
	}
}

// bringUp puts bridges, interfaces and rules as the records say. Nothing of it
// disturbs traffic where they are so already.
func bringUp(ctx context.Context, s *server) error {
	log := s.env.Log
	if err := bridge.EnableForwarding(); err != nil {
		s.warn("containers cannot reach the outside: %v", err)
	}
	for _, n := range s.networks.List() {
		if err := n.Up(s.host, s.mtu); err != nil {
			// One network that cannot be must not keep the others away.
			log.Error("network not brought up", "network", n.Name, "error", err)
			s.warn("%v", err)
		}
	}
	restored, err := s.endpoints.Restore(ctx)
	if err != nil {
		return err
	}
	if err := s.walls.Start(elements(s.networks.List(), restored)); err != nil {
		return err
	}
	if !s.walls.Antispoof() {
		s.warn("containers are not bound to their addresses: this kernel has no nftables for bridges (Linux 3.14, CONFIG_NF_TABLES_BRIDGE)")
	}
	log.Info("restored", "endpoints", len(restored), "networks", len(s.networks.List()))
	return nil
}

// watchLinks puts bridges and containers' interfaces back that somebody deleted.
func (s *server) watchLinks(ctx context.Context) {
	const settle = 50 * time.Millisecond // what is deleted together is repaired together
	damage := make(chan struct{}, 1)
	var watch sync.WaitGroup
	defer watch.Wait()
	watch.Go(func() {
		err := netlink.WatchDeleted(ctx, func(d netlink.Deletion) {
			if d.Name == "" || s.endpoints.Deleted(d) || s.isBridge(d.Name) {
				select {
				case damage <- struct{}{}:
				default:
				}
			}
		})
		if err != nil {
			s.env.Log.Error("deleted interfaces will not be noticed", "error", err)
		}
	})
	for {
		select {
		case <-damage:
		case <-ctx.Done():
			return
		}
		time.Sleep(settle)
		s.env.Log.Warn("interfaces were deleted by somebody; restoring them")
		s.repairLinks(ctx)
	}
}

// isBridge reports whether an interface is the bridge of a network.
func (s *server) isBridge(name string) bool {
	return slices.ContainsFunc(s.networks.List(), func(n *network.Network) bool { return n.Bridge == name && !n.Closed() })
}

func (s *server) repairLinks(ctx context.Context) {
	for _, n := range s.networks.List() {
		if n.Closed() {
			continue
		}
		before := n.Place().Bridge
		if err := n.Up(s.host, s.mtu); err != nil {
			s.env.Log.Error("network not brought up", "network", n.Name, "error", err)
		}
		if n.Name == network.Default && n.Place().Bridge != before {
			s.endpoints.DiscardPool()
		}
	}
	s.endpoints.Repair(ctx)
}

// elements is all the firewall is to know.
func elements(networks []*network.Network, endpoints []*endpoint.Endpoint) firewall.Elements {
	var all firewall.Elements
	for _, n := range networks {
		if n.Driver == network.DriverBridge {
			all.Networks = append(all.Networks, n.Wall())
		}
	}
	for _, e := range endpoints {
		wall := e.Wall()
		all.Sources = append(all.Sources, wall.Sources...)
		all.Publications = append(all.Publications, wall.Publications...)
	}
	return all
}

// names tell this engine's things in the kernel from another's.
type names struct {
	bridge     string // of the default network
	portPrefix string // of interfaces on the host, and namespaces
	table      string // of nftables
	group      uint32 // of interfaces about to be deleted
}

// namesOf keeps interface names within the 15 bytes the kernel has for them.
func namesOf(root, instance, table string) names {
	sum := sha256.Sum256([]byte(root))
	n := names{
		bridge:     "berth0",
		portPrefix: "bv" + hex.EncodeToString(sum[:3])[:5],
		table:      table,
		group:      binary.BigEndian.Uint32(sum[:]) | 1<<31, // far from numbers people choose
	}
	if instance != "" {
		n.bridge = "berth" + instance
	}
	return n
}

// bridgeFor names the bridge of a further network.
func (n names) bridgeFor(random string) string {
	return "bb" + n.portPrefix[2:] + random[:8]
}

func mtu(configured int, host *netlink.Conn) (int, error) {
	if configured != 0 {
		return configured, nil
	}
	return bridge.MTU(host)
}

// ensureDefault records the default network at the first start. Its subnet is
// the configured one, unless the host uses that already.
func ensureDefault(networks *network.Registry, host *netlink.Conn, bridgeName, subnet string) error {
	if _, err := networks.Find(network.Default); err == nil {
		return nil
	}
	preferred, err := netip.ParsePrefix(subnet)
	if err != nil {
		return fault.InvalidArgument.Errorf("BAD_CONFIG", "netd.default_subnet = %q: %w", subnet, err)
	}
	inUse, err := bridge.InUse(host)
	if err != nil {
		return err
	}
	chosen, err := ipam.Choose(append([]netip.Prefix{preferred}, ipam.Fallbacks...), inUse)
	if err != nil {
		return err
	}
	_, err = networks.Create(network.Record{Name: network.Default, Driver: network.DriverBridge, Bridge: bridgeName, Subnet: chosen})
	return err
}

// walls is the firewall, or the lack of one that was asked for.
type walls struct {
	*firewall.Firewall // nil: none
}

func openWalls(kind string, n names) (walls, error) {
	switch kind {
	case "none":
		return walls{}, nil
	case "iptables":
		return walls{}, fault.Unimplemented.Errorf("NO_IPTABLES", `netd.firewall = "iptables" is not available in this build`).
			Hint(`set it to "nftables", which needs Linux 4.10, or "none"`)
	}
	f, err := firewall.New(n.table, n.portPrefix, 0)
	return walls{f}, err
}

func (w walls) Start(all firewall.Elements) error {
	if w.Firewall == nil {
		return nil
	}
	w.Replace(all)
	if err := w.Rebuild(); err != nil {
		return fault.FailedPrecondition.Errorf("NO_NFTABLES", "%w", err).
			Hint(`the kernel needs nftables with nat and fib (Linux 4.10); netd.firewall = "none" goes without published ports and without protection`)
	}
	return nil
}

func (w walls) Update(add, remove firewall.Elements) error {
	if w.Firewall == nil {
		if len(add.Publications) > 0 {
			return fault.FailedPrecondition.Errorf("NO_FIREWALL", `ports cannot be published with netd.firewall = "none"`)
		}
		return nil
	}
	return w.Firewall.Update(add, remove)
}

func (w walls) Antispoof() bool { return w.Firewall != nil && w.Firewall.Antispoof() }

func (w walls) ForeignDrops() []string {
	if w.Firewall == nil {
		return nil
	}
	found, err := w.Firewall.ForeignDrops()
	if err != nil {
		return nil // a hint that is missing is no reason to fail
	}
	return found
}

func (w walls) Watch(ctx context.Context, log hclog.Logger) {
	if w.Firewall == nil {
		return
	}
	err := w.Firewall.Watch(ctx, func(err error) {
		if err != nil {
			log.Error("rules were deleted by somebody and cannot be restored", "error", err)
			return
		}
		log.Warn("rules were deleted by somebody; restored")
	})
	if err != nil {
		log.Error("deleted rules will not be noticed", "error", err)
	}
}

func (w walls) Close() error {
	if w.Firewall == nil {
		return nil
	}
	return w.Firewall.Close()
}

// warn notes what every attach is to say until netd is restarted.
func (s *server) warn(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	s.env.Log.Warn(text)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.warnings = append(s.warnings, text)
}

// warnings of now: those of the start, and what others have done to the host.
func (s *server) currentWarnings() []string {
	s.mu.Lock()
	list := slices.Clone(s.warnings)
	s.mu.Unlock()
	for _, chain := range s.walls.ForeignDrops() {
		list = append(list, fmt.Sprintf("nftables chain %s drops forwarded packets by default: containers reach the outside, and published ports work, only if it has rules for %s", chain, s.names.bridge))
	}
	return list
}

// describe fills in what netd knows of itself.
func (s *server) describe(info *apiv1.DaemonInfo) {
	info.Facts["bridge"] = s.names.bridge
	info.Facts["firewall"] = s.env.Config.Netd.Firewall
	info.Counters["networks"] = int64(len(s.networks.List()))
	info.Counters["endpoints"] = int64(len(s.endpoints.List()))
	info.Counters["ready_namespaces"] = int64(s.endpoints.Ready())
	info.Warnings = s.currentWarnings()
}
