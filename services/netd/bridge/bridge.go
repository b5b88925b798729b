// Package bridge makes the bridge of a network on the host: the device, its
// address (the containers' gateway), and the kernel settings that go with it.
package bridge

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"

	"berth/internal/fault"
	"berth/libcontainer/netlink"
)

// Bridge is what a bridge is to be.
type Bridge struct {
	Name    string       // interface name, at most 15 bytes
	Address netip.Prefix // the gateway, with the subnet's prefix length
	MAC     net.HardwareAddr
	MTU     int
}

// Ensure makes the bridge, or puts right what is not as it should be, and
// returns its interface index. FailedPrecondition if the name belongs to
// something that is not a bridge.
func (b Bridge) Ensure(host *netlink.Conn) (int, error) {
	link, err := host.LinkByName(b.Name)
	if errors.Is(err, syscall.ENODEV) {
		var make netlink.Batch
		make.AddBridge(b.Name, b.MTU, b.MAC)
		if err := host.Do(&make); err != nil && !errors.Is(err, syscall.EEXIST) {
			return 0, err
		}
		link, err = host.LinkByName(b.Name)
	}
	if err != nil {
		return 0, err
	}
	if link.Kind != "bridge" {
		return 0, fault.FailedPrecondition.Errorf("NOT_A_BRIDGE", "interface %s exists and is not a bridge", b.Name).
			With("interface", b.Name).Hint("rename or delete it: ip link delete %s", b.Name)
	}
	if err := b.address(host, link.Index); err != nil {
		return 0, err
	}
	// Programs of the host reach published ports through 127.0.0.1: such a
	// packet leaves by the bridge, which the kernel only routes if told so here.
	// The firewall drops 127/8 that comes in from outside.
	if err := set("ipv4/conf/"+b.Name+"/route_localnet", "1"); err != nil {
		return 0, err
	}
	var up netlink.Batch
	up.SetUpBare(b.Name)
	return link.Index, host.Do(&up)
}

// address gives the bridge its address and takes others of IPv4 away.
func (b Bridge) address(host *netlink.Conn, index int) error {
	addresses, err := host.Addresses()
	if err != nil {
		return err
	}
	var change netlink.Batch
	there := false
	for _, a := range addresses {
		switch {
		case a.Link != index || !a.Prefix.Addr().Is4():
		case a.Prefix == b.Address:
			there = true
		default:
			change.DeleteAddress(index, a.Prefix)
		}
	}
	if !there {
		change.AddAddress(index, b.Address)
	}
	return host.Do(&change)
}

// Delete deletes the bridge; if there is none it does nothing.
func Delete(host *netlink.Conn, name string) error {
	link, err := host.LinkByName(name)
	if errors.Is(err, syscall.ENODEV) {
		return nil
	}
	if err != nil {
		return err
	}
	var gone netlink.Batch
	gone.DeleteLink(link.Index)
	return host.Do(&gone)
}

// EnableForwarding lets the host pass packets on between bridges and the
// outside. Turning it on opens the way between the host's other interfaces too,
// as every container engine does; an error says that it is off and stays off.
func EnableForwarding() error {
	const name = "ipv4/ip_forward"
	if on, err := os.ReadFile("/proc/sys/net/" + name); err == nil && strings.TrimSpace(string(on)) == "1" {
		return nil
	}
	return set(name, "1")
}

// set writes a kernel parameter below net; CAP_NET_ADMIN suffices (net_ctl_permissions
// in Linux).
func set(name, value string) error {
	if err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0); err != nil {
		return fmt.Errorf("set sysctl net.%s: %w", strings.ReplaceAll(name, "/", "."), err)
	}
	return nil
}

// MTU of the link that the default route leaves by; 1500 without one.
func MTU(host *netlink.Conn) (int, error) {
	const ethernet = 1500
	routes, err := host.Routes()
	if err != nil {
		return 0, err
	}
	links, err := host.Links()
	if err != nil {
		return 0, err
	}
	for _, r := range routes {
		if r.Dst.Bits() != 0 || !r.Dst.Addr().Is4() {
			continue
		}
		for _, l := range links {
			if l.Index == r.Link && l.MTU >= 68 { // the least IPv4 allows
				return min(l.MTU, 65535), nil
			}
		}
	}
	return ethernet, nil
}

// InUse lists the prefixes that routes and addresses of the host already cover.
func InUse(host *netlink.Conn) ([]netip.Prefix, error) {
	routes, err := host.Routes()
	if err != nil {
		return nil, err
	}
	addresses, err := host.Addresses()
	if err != nil {
		return nil, err
	}
	var in []netip.Prefix
	for _, r := range routes {
		in = append(in, r.Dst)
	}
	for _, a := range addresses {
		in = append(in, a.Prefix.Masked())
	}
	return in, nil
}
