package netd

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"berth/internal/fault"
	apiv1 "berth/proto/berth/api/v1"
	networkv1 "berth/proto/berth/network/v1"
)

// standBy attaches what no container has yet.
func (r *rig) standBy(id string) {
	r.Helper()
	_, err := r.endpoints.Attach(context.Background(), &networkv1.AttachRequest{ContainerId: id, Hostname: id, Standby: true})
	r.must(err)
}

// use gives it to the container.
func (r *rig) use(id string, ports ...*apiv1.PortMapping) ([]*apiv1.EndpointInfo, error) {
	resp, err := r.endpoints.Use(context.Background(), &networkv1.UseRequest{ContainerId: id, ContainerName: "name-" + id, Ports: ports})
	return resp.GetEndpoints(), err
}

// used has the container that was attached as the tests see one.
func (r *rig) used(id string) *container {
	r.Helper()
	return r.attach(id, nil) // it keeps what it has
}

func TestUse(t *testing.T) {
	r := newRig(t, "pool_size = 0")
	empty := r.ruleset()
	r.standBy("a")
	got, err := r.use("a", tcp(8080, 80), &apiv1.PortMapping{ContainerPort: 53, Protocol: "udp"})
	if err != nil || len(got) != 1 || len(got[0].Ports) != 2 || got[0].Ports[0].HostPort != 8080 || got[0].Ports[1].HostPort == 0 || got[0].Network != "bridge" {
		t.Fatalf("%v, %v", got, err)
	}
	a := r.used("a")
	if a.ip.String() != got[0].IpAddress {
		t.Errorf("its address is %s, was %s", a.ip, got[0].IpAddress)
	}
	r.serveTCP(a.ns, 80, "a")
	r.reach(nil, "tcp4", "127.0.0.1:8080", "a")
	if again, err := r.use("a", tcp(8080, 80)); err != nil || len(again) != 1 || again[0].EndpointId != got[0].EndpointId || len(again[0].Ports) != 2 {
		t.Errorf("used twice: %v, %v", again, err)
	}
	_, err = r.tryAttach("b", &apiv1.NetworkSpec{Ports: []*apiv1.PortMapping{tcp(8080, 80)}})
	if err == nil || !strings.HasSuffix(err.Error(), "in use by container name-a (a)") {
		t.Errorf("its port is given away: %v", err)
	}
	r.killNetd()
	r.startNetd()
	r.reach(nil, "tcp4", "127.0.0.1:8080", "a")
	if resp, err := r.networks.Inspect(context.Background(), &apiv1.NetworkServiceInspectRequest{Network: "bridge"}); err != nil || len(resp.Network.Endpoints) != 1 {
		t.Errorf("the network's containers: %v, %v", resp.GetNetwork().GetEndpoints(), err)
	}
	r.detach("a")
	if now := r.ruleset(); now != empty {
		t.Errorf("rules left behind:\n%s", now)
	}
	if got, err := r.use("a"); err != nil || len(got) > 0 {
		t.Errorf("of one that is gone: %v, %v", got, err)
	}
}

// TestUseRefused: what is refused changes nothing; the endpoint stands by as before.
func TestUseRefused(t *testing.T) {
	r := newRig(t, "pool_size = 0")
	r.attach("other", &apiv1.NetworkSpec{Ports: []*apiv1.PortMapping{tcp(8080, 80)}})
	r.standBy("a")
	before := r.ruleset()
	for name, c := range map[string]struct {
		ports []*apiv1.PortMapping
		kind  fault.Kind
	}{
		"in use":  {[]*apiv1.PortMapping{tcp(8000, 80), tcp(8080, 80)}, fault.AlreadyExists},
		"no port": {[]*apiv1.PortMapping{tcp(8000, 80), tcp(8001, 0)}, fault.InvalidArgument},
		"not the host's": {[]*apiv1.PortMapping{tcp(8000, 80), {HostIp: "203.0.113.1", HostPort: 1, ContainerPort: 1}},
			fault.InvalidArgument},
	} {
		if got, err := r.use("a", c.ports...); !errors.Is(err, c.kind) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	if now := r.ruleset(); now != before {
		t.Errorf("the rules changed from\n%s\nto\n%s", before, now)
	}
	if got, err := r.use("a", tcp(8000, 80)); err != nil || len(got) != 1 || len(got[0].Ports) != 1 {
		t.Errorf("then used: %v, %v", got, err)
	}
}

// TestF01DiesWhileGivingWhatStoodBy: at whatever step of it netd dies or fails, nothing is lost and nothing stays.
func TestF01DiesWhileGivingWhatStoodBy(t *testing.T) {
	r := newRig(t, "pool_size = 0")
	empty := r.ruleset()
	for point, before := range map[string]string{"netd.port-bound": "1*off->", "netd.rules-swapped": "", "journal.appended": "1*off->"} {
		for _, action := range []string{"error", "kill"} {
			r.killNetd()
			r.startNetd(point + "=" + before + "1*" + action)
			r.standBy("a")
			got, err := r.use("a", tcp(8080, 80))
			if err == nil {
				t.Errorf("%s=%s: it was given %v", point, action, got)
			}
			if action == "kill" {
				select {
				case <-r.netdEnd:
				case <-time.After(5 * time.Second):
					t.Fatalf("%s=kill was not met", point)
				}
				r.startNetd()
			} else if got, err := r.use("a", tcp(8080, 80)); err != nil || len(got) != 1 || len(got[0].Ports) != 1 {
				t.Errorf("%s=error, then: %v, %v", point, got, err)
			}
			r.detach("a")
			a := r.attach("a", &apiv1.NetworkSpec{Ports: []*apiv1.PortMapping{tcp(8080, 80)}})
			r.serveTCP(a.ns, 80, point)
			r.reach(nil, "tcp4", "127.0.0.1:8080", point)
			r.detach("a")
			r.eventually(point+"="+action+": rules, interfaces and namespaces are gone", func() bool {
				return r.ruleset() == empty && len(r.slotInterfaces()) == 0 && len(r.execd.List()) == 0
			})
		}
	}
}
