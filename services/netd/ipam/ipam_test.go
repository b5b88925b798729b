package ipam

import (
	"errors"
	"net/netip"
	"testing"

	"berth/internal/fault"
)

func subnet(cidr, gateway string) *Subnet {
	return NewSubnet(netip.MustParsePrefix(cidr), netip.MustParseAddr(gateway))
}

func TestTakeWalksAndRests(t *testing.T) {
	s := subnet("10.0.0.0/29", "10.0.0.1") // 6 hosts, one of them the gateway
	var got []string
	for range 5 {
		a, err := s.Take()
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, a.String())
	}
	for i, want := range []string{"10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"} {
		if got[i] != want {
			t.Errorf("address %d is %s, want %s", i, got[i], want)
		}
	}
	if a, err := s.Take(); !errors.Is(err, fault.ResourceExhausted) {
		t.Errorf("a full subnet gave %v, %v", a, err)
	}
	s.Free(netip.MustParseAddr("10.0.0.6"))
	s.Free(netip.MustParseAddr("10.0.0.3"))
	if a, _ := s.Take(); a.String() != "10.0.0.3" {
		t.Errorf("behind .6 came %s, want the longest free one, .3", a)
	}
	if a, _ := s.Take(); a.String() != "10.0.0.6" {
		t.Errorf("the last free one is .6, got %s", a)
	}
}

func TestFreedIsNotReusedAtOnce(t *testing.T) {
	s := subnet("10.0.0.0/24", "10.0.0.1")
	a, _ := s.Take()
	s.Free(a)
	if b, _ := s.Take(); a == b {
		t.Errorf("%s was reused at once", a)
	}
}

func TestTakeThis(t *testing.T) {
	s := subnet("10.0.0.0/24", "10.0.0.1")
	for a, want := range map[string]error{
		"10.0.0.77":  nil,
		"10.0.0.1":   fault.AlreadyExists,
		"10.0.0.0":   fault.InvalidArgument,
		"10.0.0.255": fault.InvalidArgument,
		"10.0.1.1":   fault.InvalidArgument,
	} {
		if err := s.TakeThis(netip.MustParseAddr(a)); !errors.Is(err, want) {
			t.Errorf("TakeThis(%s) = %v, want %v", a, err, want)
		}
	}
	if s.InUse() != 1 {
		t.Errorf("%d in use, want 1", s.InUse())
	}
}

func TestChooseAvoidsRoutes(t *testing.T) {
	in := []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("172.17.3.0/24"), netip.MustParsePrefix("172.18.0.0/15")}
	got, err := Choose(Fallbacks, in)
	if err != nil || got != netip.MustParsePrefix("172.20.0.0/14") {
		t.Errorf("Choose = %v, %v", got, err)
	}
	got, err = Cut(netip.MustParsePrefix("172.17.0.0/16"), 24, append(in, netip.MustParsePrefix("172.17.0.0/23")))
	if err != nil || got != netip.MustParsePrefix("172.17.2.0/24") {
		t.Errorf("Cut = %v, %v", got, err)
	}
	if _, err := Cut(netip.MustParsePrefix("172.18.0.0/16"), 24, in); !errors.Is(err, fault.ResourceExhausted) {
		t.Errorf("Cut from a pool in use: %v", err)
	}
	if _, err := Cut(netip.MustParsePrefix("255.255.255.0/24"), 24, []netip.Prefix{netip.MustParsePrefix("255.255.255.0/24")}); !errors.Is(err, fault.ResourceExhausted) {
		t.Errorf("Cut at the end of the address space: %v", err)
	}
}
