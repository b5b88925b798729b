package network

import (
	"errors"
	"net/netip"
	"testing"

	"berth/internal/fault"
	"berth/internal/journal"
)

func open(t *testing.T, dir string) *Registry {
	t.Helper()
	j, err := journal.Open(dir, journal.Options{})
	if err != nil {
		t.Fatal(err)
	}
	r, err := Open(j)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	return r
}

func bridgeRecord(name, subnet, gateway string) Record {
	rec := Record{Name: name, Driver: DriverBridge, Bridge: "bb" + name, Labels: map[string]string{"k": "v"}}
	rec.Subnet, _ = netip.ParsePrefix(subnet)
	rec.Gateway, _ = netip.ParseAddr(gateway)
	return rec
}

func TestCreate(t *testing.T) {
	r := open(t, t.TempDir())
	for _, c := range []struct {
		name, subnet, gateway string
		kind                  error
	}{
		{"front", "10.1.0.0/24", "", nil},
		{"back", "10.1.1.0/24", "10.1.1.254", nil},
		{"front", "10.2.0.0/24", "", fault.AlreadyExists},
		{"host", "10.2.0.0/24", "", fault.AlreadyExists},
		{"over", "10.1.0.0/16", "", fault.AlreadyExists},
		{"bits", "10.3.0.1/24", "", fault.InvalidArgument},
		{"tiny", "10.3.0.0/31", "", fault.InvalidArgument},
		{"huge", "0.0.0.0/0", "", fault.InvalidArgument},
		{"loop", "127.1.0.0/24", "", fault.InvalidArgument},
		{"six", "fd00::/64", "", fault.InvalidArgument},
		{"nothing", "", "", fault.InvalidArgument},
		{"gate", "10.3.0.0/24", "10.4.0.1", fault.InvalidArgument},
		{"gate", "10.3.0.0/24", "10.3.0.255", fault.InvalidArgument},
		{"", "10.3.0.0/24", "", fault.InvalidArgument},
		{"a b", "10.3.0.0/24", "", fault.InvalidArgument},
		{"-x", "10.3.0.0/24", "", fault.InvalidArgument},
	} {
		n, err := r.Create(bridgeRecord(c.name, c.subnet, c.gateway))
		if !errors.Is(err, c.kind) {
			t.Errorf("create %q with %s: %v, want %v", c.name, c.subnet, err, c.kind)
		}
		if err == nil && c.gateway == "" && n.Gateway != netip.MustParseAddr("10.1.0.1") {
			t.Errorf("gateway of %s is %s", c.subnet, n.Gateway)
		}
	}
}

func TestRecordsSurvive(t *testing.T) {
	dir := t.TempDir()
	j, err := journal.Open(dir, journal.Options{})
	if err != nil {
		t.Fatal(err)
	}
	r, err := Open(j)
	if err != nil {
		t.Fatal(err)
	}
	kept, err := r.Create(bridgeRecord("kept", "10.1.0.0/24", ""))
	if err != nil {
		t.Fatal(err)
	}
	gone, err := r.Create(bridgeRecord("gone", "10.2.0.0/24", ""))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Remove(gone.ID); err != nil {
		t.Fatal(err)
	}
	j.Close()

	r = open(t, dir)
	for _, ref := range []string{"kept", kept.ID, kept.ID[:10]} {
		n, err := r.Find(ref)
		if err != nil {
			t.Errorf("find %s: %v", ref, err)
			continue
		}
		if n.Subnet != kept.Subnet || n.Gateway != kept.Gateway || n.Bridge != kept.Bridge || n.Labels["k"] != "v" || !n.Created.Equal(kept.Created) {
			t.Errorf("record came back as %+v, was %+v", n.Record, kept.Record)
		}
	}
	if _, err := r.Find("gone"); !errors.Is(err, fault.NotFound) {
		t.Errorf("a removed network: %v", err)
	}
	if n := len(r.List()); n != 3 {
		t.Errorf("%d networks, want host, none and kept", n)
	}
	if _, err := r.Find(""); !errors.Is(err, fault.NotFound) {
		t.Errorf("no name at all: %v", err)
	}
}

func TestClose(t *testing.T) {
	r := open(t, t.TempDir())
	n, err := r.Create(bridgeRecord("x", "10.1.0.0/24", ""))
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Enter(); err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); !errors.Is(err, fault.FailedPrecondition) {
		t.Errorf("closing a network in use: %v", err)
	}
	n.Leave()
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if err := n.Enter(); !errors.Is(err, fault.FailedPrecondition) {
		t.Errorf("entering a closed network: %v", err)
	}
}
