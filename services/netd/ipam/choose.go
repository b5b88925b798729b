package ipam

import (
	"net/netip"

	"berth/internal/fault"
)

// Fallbacks are private ranges (RFC 1918) tried for a first subnet when the
// configured one is in use on the host.
var Fallbacks = []netip.Prefix{
	netip.MustParsePrefix("172.17.0.0/16"), netip.MustParsePrefix("172.18.0.0/16"),
	netip.MustParsePrefix("172.19.0.0/16"), netip.MustParsePrefix("172.20.0.0/14"),
	netip.MustParsePrefix("172.24.0.0/14"), netip.MustParsePrefix("172.28.0.0/14"),
	netip.MustParsePrefix("10.90.0.0/16"), netip.MustParsePrefix("10.210.0.0/16"),
	netip.MustParsePrefix("192.168.208.0/20"), netip.MustParsePrefix("192.168.240.0/20"),
}

// Choose returns the first candidate that overlaps none of the prefixes in use.
// Default routes (the zero prefix) overlap everything and are not counted.
func Choose(candidates, inUse []netip.Prefix) (netip.Prefix, error) {
	for _, c := range candidates {
		if !overlapsAny(c, inUse) {
			return c.Masked(), nil
		}
	}
	return netip.Prefix{}, fault.ResourceExhausted.Errorf("NO_SUBNET_LEFT", "every subnet to choose from overlaps one in use on this host").
		Hint("name a free one: netd.default_subnet and netd.subnet_pool in berth.toml, or --subnet")
}

// Cut returns the first subnet of the given length in pool that overlaps none
// of the prefixes in use.
func Cut(pool netip.Prefix, bits int, inUse []netip.Prefix) (netip.Prefix, error) {
	if bits < pool.Bits() || bits > 30 {
		return netip.Prefix{}, fault.InvalidArgument.Errorf("BAD_CONFIG", "netd.subnet_bits = %d: want %d to 30", bits, pool.Bits())
	}
	for c := netip.PrefixFrom(pool.Masked().Addr(), bits); pool.Contains(c.Addr()); {
		if !overlapsAny(c, inUse) {
			return c, nil
		}
		next := lastOf(c).Next()
		if !next.IsValid() {
			break
		}
		c = netip.PrefixFrom(next, bits)
	}
	return netip.Prefix{}, fault.ResourceExhausted.Errorf("NO_SUBNET_LEFT", "no subnet is left in %s", pool).
		With("pool", pool.String()).
		Hint("remove unused networks, or name a subnet with --subnet")
}

func overlapsAny(p netip.Prefix, inUse []netip.Prefix) bool {
	for _, u := range inUse {
		if u.Bits() > 0 && p.Overlaps(u) {
			return true
		}
	}
	return false
}
