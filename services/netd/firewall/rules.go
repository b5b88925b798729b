package firewall

import (
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// Registers. The 32-bit ones (8…23) are how a concatenated key is laid out: each
// part starts in a register of its own. Register 1 is 8 to 11 under another name.
const reg, reg32 = 1, 8

// Protocol numbers and offsets used below, from the headers' RFCs.
const (
	offsetEtherSource = 6  // link layer
	offsetEtherType   = 12 // link layer
	offsetARPMAC      = 8  // network layer, sender hardware address (RFC 826)
	offsetARPIP       = 14 // network layer, sender protocol address
	offsetIPSource    = 12
	offsetIPDest      = 16
	offsetPortDest    = 2 // transport layer, TCP and UDP alike

	addressLocal = 2 // RTN_LOCAL, the result of a fib lookup by address type

	ctEstablishedRelated = 2 | 4  // NF_CT_STATE_BIT of established and related
	ctStatusDNAT         = 1 << 5 // IPS_DST_NAT
	ifNameSize           = 16     // IFNAMSIZ
)

var (
	etherTypeIP  = []byte{0x08, 0x00}
	etherTypeARP = []byte{0x08, 0x06}
	loopbackNet  = []byte{127}
)

// statement is one or more expressions; a rule is a list of statements.
type statement []expr.Any

func rule(parts ...statement) []expr.Any {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

// inChain are the rules of the chains of table ip, in order.
func (f *Firewall) loopbackRules() [][]expr.Any {
	return [][]expr.Any{
		// The kernel drops these itself unless route_localnet is on, and on our
		// bridges it is (TestS37).
		rule(notFrom("lo"), destStarts(loopbackNet), drop()),
	}
}

// dnatRules send what is addressed to this host and published to its container.
// "To this host" is asked of the routing table, so that transit traffic to the
// same port number of another host passes untouched (S-40), and new addresses
// of the host need no new rules.
func (f *Firewall) dnatRules() [][]expr.Any {
	toContainer := statement{&expr.NAT{
		Type: expr.NATTypeDestNAT, Family: uint32(nftables.TableFamilyIPv4),
		RegAddrMin: reg, RegAddrMax: reg, RegProtoMin: reg32 + 1, RegProtoMax: reg32 + 1, Specified: true,
	}}
	toHost := statement{
		&expr.Fib{Register: reg, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{addressLocal, 0, 0, 0}},
	}
	return [][]expr.Any{
		rule(toHost, statement{
			network(offsetIPDest, 4, reg),
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg32 + 1},
			transport(offsetPortDest, 2, reg32+2),
			&expr.Lookup{SourceRegister: reg, DestRegister: reg, IsDestRegSet: true, SetName: f.published.Name},
		}, toContainer),
		rule(toHost, statement{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg},
			transport(offsetPortDest, 2, reg32+1),
			&expr.Lookup{SourceRegister: reg, DestRegister: reg, IsDestRegSet: true, SetName: f.publishedAny.Name},
		}, toContainer),
	}
}

// forwardRules hold the default: nobody outside reaches a container but through
// a published port, whatever routes they set up. From and to an internal network
// nothing passes at all; a port published there is for the host itself.
func (f *Firewall) forwardRules() [][]expr.Any {
	sameBridge := statement{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg},
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: reg + 1},
	}
	return [][]expr.Any{
		rule(sameBridge, in(f.pairs), accept()),
		rule(iifname(reg), in(f.internal), drop()),
		rule(oifname(), in(f.internal), drop()),
		rule(oifname(), in(f.bridges), statement{&expr.Verdict{Kind: expr.VerdictJump, Chain: chainToContainer}}),
	}
}

func (f *Firewall) toContainerRules() [][]expr.Any {
	return [][]expr.Any{
		rule(conntrack(expr.CtKeySTATE, ctEstablishedRelated), accept()),
		rule(conntrack(expr.CtKeySTATUS, ctStatusDNAT), accept()),
		rule(drop()),
	}
}

func (f *Firewall) postroutingRules() [][]expr.Any {
	masquerade := statement{&expr.Masq{}}
	source := statement{network(offsetIPSource, 4, reg)}
	return [][]expr.Any{
		rule(source, in(f.subnets), oifname(), notIn(f.bridges), masquerade),
		// The host's own programs reach a published port through 127.0.0.1; the
		// container could never answer to that address.
		rule(oifname(), in(f.bridges), sourceStarts(loopbackNet), masquerade),
		// A container that reaches its neighbour (or itself) by the host's
		// address: the answer must come back through the host to be translated.
		rule(oifname(), in(f.bridges), source, in(f.subnets), conntrack(expr.CtKeySTATUS, ctStatusDNAT), masquerade),
	}
}

// antispoofRules let a container's frames pass only with the MAC and address it
// was given, in the Ethernet header, the IP header and ARP. All else from such
// a port is dropped: other protocols, VLAN tags, and IPv6 until a network has it.
func (f *Firewall) antispoofRules() [][]expr.Any {
	etherType := func(t []byte) statement {
		return statement{link(offsetEtherType, 2, reg), &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: t}}
	}
	// The key is port (16 bytes, registers 8-11), MAC (12-13), address (14).
	key := func(mac, ip expr.Any) statement {
		return statement{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg}, mac, ip,
			&expr.Lookup{SourceRegister: reg, SetName: f.sources.Name}}
	}
	frameMAC := link(offsetEtherSource, 6, reg+1)
	return [][]expr.Any{
		rule(statement{
			&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: []byte(f.portPrefix)},
		}, accept()),
		rule(etherType(etherTypeIP), key(frameMAC, network(offsetIPSource, 4, reg32+6)), accept()),
		rule(etherType(etherTypeARP),
			key(frameMAC, network(offsetARPIP, 4, reg32+6)),
			key(network(offsetARPMAC, 6, reg+1), network(offsetARPIP, 4, reg32+6)), accept()),
		rule(drop()),
	}
}

func link(offset, length, into uint32) expr.Any {
	return &expr.Payload{Base: expr.PayloadBaseLLHeader, Offset: offset, Len: length, DestRegister: into}
}

func network(offset, length, into uint32) expr.Any {
	return &expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length, DestRegister: into}
}

func transport(offset, length, into uint32) expr.Any {
	return &expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: length, DestRegister: into}
}

func iifname(into uint32) statement {
	return statement{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: into}}
}

func oifname() statement {
	return statement{&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: reg}}
}

func notFrom(name string) statement {
	return append(iifname(reg), &expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: paddedName(name)})
}

func in(s *nftables.Set) statement {
	return statement{&expr.Lookup{SourceRegister: reg, SetName: s.Name}}
}

func notIn(s *nftables.Set) statement {
	return statement{&expr.Lookup{SourceRegister: reg, SetName: s.Name, Invert: true}}
}

func sourceStarts(octets []byte) statement { return addressStarts(offsetIPSource, octets) }
func destStarts(octets []byte) statement   { return addressStarts(offsetIPDest, octets) }

func addressStarts(offset uint32, octets []byte) statement {
	return statement{network(offset, uint32(len(octets)), reg), &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: octets}}
}

// conntrack matches packets whose connection has any of the given bits.
func conntrack(key expr.CtKey, bits byte) statement {
	return statement{
		&expr.Ct{Key: key, Register: reg},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: []byte{bits, 0, 0, 0}, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: make([]byte, 4)},
	}
}

func accept() statement { return statement{&expr.Verdict{Kind: expr.VerdictAccept}} }
func drop() statement   { return statement{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}} }

func paddedName(name string) []byte {
	b := make([]byte, ifNameSize)
	copy(b, name)
	return b
}
