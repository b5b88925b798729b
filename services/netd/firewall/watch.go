package firewall

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/net/bpf"
)

// Numbers of linux/netfilter/nfnetlink.h and nf_tables.h.
const (
	familyNetfilter = 12 // NETLINK_NETFILTER
	groupNFTables   = 7  // NFNLGRP_NFTABLES
	subsystem       = 10 // NFNL_SUBSYS_NFTABLES

	deleteTable = subsystem<<8 | 2
	newChain    = subsystem<<8 | 3
	deleteChain = subsystem<<8 | 5
	deleteRule  = subsystem<<8 | 8
)

// Watch repairs the rules whenever somebody has deleted tables, chains or rules
// of the host ("nft flush ruleset", a firewall service that reloads), until ctx
// is done. repaired is called after each repair, with its error.
func (f *Firewall) Watch(ctx context.Context, repaired func(error)) error {
	events, err := netlink.Dial(familyNetfilter, nil)
	if err != nil {
		return fmt.Errorf("open nftables event socket: %w", err)
	}
	defer events.Close()
	if err := f.ignoreOwn(events); err != nil {
		return err
	}
	if err := events.JoinGroup(groupNFTables); err != nil {
		return fmt.Errorf("subscribe to nftables events: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { events.SetReadDeadline(time.Now()) })
	defer stop()
	for ctx.Err() == nil {
		messages, err := events.Receive()
		if ctx.Err() != nil {
			return nil
		}
		// An overrun (ENOBUFS) means that events were lost: look, too.
		if err != nil || has(messages, deleteTable, newChain, deleteChain) {
			f.foreign.Store(nil)
		}
		if (err != nil || has(messages, deleteTable, deleteChain, deleteRule)) && !f.intact() {
			repaired(f.Rebuild())
		}
	}
	return nil
}

// ignoreOwn keeps the news of f's own changes from a socket: each container
// changes elements, and would wake the reader for nothing. Who made a change is
// in the port id of every message that tells of it (struct nlmsghdr), and all
// messages of a datagram are of one change. When f's connection has been
// replaced, its news arrive, and are found to be of no interest.
func (f *Firewall) ignoreOwn(events *netlink.Conn) error {
	f.mu.Lock()
	own, err := f.conn.portID()
	f.mu.Unlock()
	if err != nil {
		return fmt.Errorf("look up the address of the nftables socket: %w", err)
	}
	const portIDAt = 12
	seen := binary.BigEndian.Uint32(binary.NativeEndian.AppendUint32(nil, own)) // as the filter loads it
	program, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: portIDAt, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: seen, SkipFalse: 1},
		bpf.RetConstant{Val: 0},
		bpf.RetConstant{Val: math.MaxUint32},
	})
	if err != nil {
		return err
	}
	if err := events.SetBPF(program); err != nil {
		return fmt.Errorf("filter nftables events: %w", err)
	}
	return nil
}

// has reports whether one of the messages is of one of the kinds.
func has(messages []netlink.Message, kinds ...netlink.HeaderType) bool {
	return slices.ContainsFunc(messages, func(m netlink.Message) bool { return slices.Contains(kinds, m.Header.Type) })
}

// intact reports whether every chain has its rules. It waits for a change of
// our own to be over.
func (f *Firewall) intact() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.chains() {
		var rules []*nftables.Rule
		err := f.dump.exchange(func() (err error) {
			rules, err = f.dump.GetRules(c.Table, c.Chain)
			return err
		})
		if err != nil || len(rules) != len(c.rules) {
			return false
		}
	}
	return true
}

// ForeignDrops returns the chains of other tables, as "table/chain", that drop
// by default what is forwarded. An accept of ours does not overrule them: as
// long as they have no rule for it, containers reach nothing outside. The answer
// is remembered until [Firewall.Watch] sees chains change: some hosts have
// thousands.
func (f *Firewall) ForeignDrops() ([]string, error) {
	if known := f.foreign.Load(); known != nil {
		return *known, nil
	}
	var empty, found []string
	f.foreign.Store(&empty) // before looking: what changes meanwhile clears it again
	for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyINet} {
		chains, err := f.listChains(family)
		if err != nil {
			f.foreign.Store(nil)
			return nil, fmt.Errorf("list nftables chains: %w", err)
		}
		for _, c := range chains {
			if c.Table.Name != f.table.Name && c.Hooknum != nil && *c.Hooknum == *nftables.ChainHookForward &&
				c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop {
				found = append(found, c.Table.Name+"/"+c.Name)
			}
		}
	}
	f.foreign.CompareAndSwap(&empty, &found)
	return found, nil
}

func (f *Firewall) listChains(family nftables.TableFamily) (list []*nftables.Chain, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	err = f.dump.exchange(func() (err error) {
		list, err = f.dump.ListChainsOfTableFamily(family)
		return err
	})
	return list, err
}
