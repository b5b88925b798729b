package endpoint

import (
	"encoding/json"
	"net/netip"
	"os"
	"strings"
	"time"

	"berth/internal/fault"
	"berth/internal/journal"
	"berth/services/netd/firewall"
	"berth/services/netd/portmap"
	"berth/services/netd/slot"
)

// Endpoint is a container's place in a network. It does not change.
type Endpoint struct {
	ID        string     `json:"id"`
	Container string     `json:"container"`
	Network   string     `json:"network"` // id
	Owner     string     `json:"owner"`   // "container web", for messages
	Slot      *slot.Slot `json:"slot"`
	Ports     []Mapping  `json:"ports,omitempty"`
	Aliases   []string   `json:"aliases,omitempty"`
	Created   time.Time  `json:"created"`
	Standby   bool       `json:"standby,omitempty"` // no container has it yet
}

// Mapping is one published port.
type Mapping struct {
	HostIP        netip.Addr       `json:"host_ip"`
	HostPort      uint16           `json:"host_port"` // in a request, 0: any
	ContainerPort uint16           `json:"container_port"`
	Protocol      portmap.Protocol `json:"protocol"`
}

func (e *Endpoint) hostPorts() []portmap.Port {
	ports := make([]portmap.Port, len(e.Ports))
	for i, m := range e.Ports {
		ports[i] = portmap.Port{IP: m.HostIP, Number: m.HostPort, Protocol: m.Protocol}
	}
	return ports
}

// publications are the elements that lead the published ports to the container.
func (e *Endpoint) publications() []firewall.Publication {
	list := make([]firewall.Publication, len(e.Ports))
	for i, m := range e.Ports {
		list[i] = firewall.Publication{HostIP: m.HostIP, HostPort: m.HostPort, Protocol: protocolNumber(m.Protocol),
			To: netip.AddrPortFrom(e.Slot.IP, m.ContainerPort)}
	}
	return list
}

// Wall is all that the firewall knows of the endpoint.
func (e *Endpoint) Wall() firewall.Elements {
	return firewall.Elements{Sources: []firewall.Source{e.Slot.Source()}, Publications: e.publications()}
}

func protocolNumber(p portmap.Protocol) firewall.Protocol {
	if p == portmap.UDP {
		return firewall.UDP
	}
	return firewall.TCP
}

// records keeps endpoints over a restart of netd, but not over one of the
// machine: they describe live namespaces. They lie in the run directory, and
// are not synced.
type records struct {
	journal *journal.Journal
}

const (
	keyPrefix = "endpoint/"
	keyBoot   = "boot"
)

// openRecords empties the journal if it is from before the last boot, which
// happens where the run directory is not on a tmpfs.
func openRecords(j *journal.Journal) (records, error) {
	r := records{j}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return r, err
	}
	if was, ok := j.Get(keyBoot); ok && string(was) == string(boot) {
		return r, nil
	}
	var b journal.Batch
	for key := range j.Range(keyPrefix) {
		b.Delete(key)
	}
	b.Put(keyBoot, boot)
	return r, j.Commit(&b, false)
}

func (r records) all() ([]*Endpoint, error) {
	var list []*Endpoint
	for key, value := range r.journal.Range(keyPrefix) {
		var e Endpoint
		if err := json.Unmarshal(value, &e); err != nil || e.Slot == nil {
			return nil, fault.DataLoss.Errorf("RECORD_DAMAGED", "record %s: %w", key, err)
		}
		list = append(list, &e)
	}
	return list, nil
}

func (r records) put(e *Endpoint) error {
	value, err := json.Marshal(e)
	if err != nil {
		return err
	}
	return r.journal.Put(e.key(), value, false)
}

func (r records) delete(e *Endpoint) error { return r.journal.Delete(e.key(), false) }

func (e *Endpoint) key() string {
	return strings.Join([]string{keyPrefix + e.Container, e.Network}, "/")
}
