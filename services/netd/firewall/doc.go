// Package firewall keeps the engine's nftables rules.
//
// The rules are fixed: a constant handful of chains that look everything up in
// maps and sets. Publishing a port, adding a container or a network changes
// elements and never rules, so its cost does not grow with what is there. Two
// tables carry the same name (nftables keeps families apart):
//
//	table ip berth
//	  map published      { host address . protocol . port : container address . port }
//	  map published_any  { protocol . port : container address . port }
//	  set subnets        of all networks
//	  set bridges        of all networks
//	  set pairs          bridge . bridge, for traffic that stays on its bridge
//	  set internal       bridges that forward nothing
//
//	  chain loopback     (raw)          127.0.0.0/8 from any interface but lo is forged: drop
//	  chain prerouting   (nat)          what is addressed to this host itself and published: dnat
//	  chain output       (nat)          the same for the host's own programs, 127.0.0.1 included
//	  chain forward      (filter)       within a bridge: accept; internal: drop; towards a bridge:
//	  chain to_container                replies and what is published; else drop
//	  chain postrouting  (nat)          leaving a subnet, from 127/8, or hairpinned: masquerade
//
//	table bridge berth
//	  set sources        { port . MAC . address } of all containers
//	  chain antispoof                   frames from a container with any other source: drop
//
// A forward policy is none of ours: only traffic towards our bridges is ever
// dropped, and an "accept" here does not overrule a drop in anybody else's
// table. [Firewall.ForeignDrops] finds those, so that the user can be told.
package firewall
