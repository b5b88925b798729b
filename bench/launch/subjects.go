package main

import (
	"context"
	"errors"
	"fmt"
	"os"
)

// subjects are all that is measured.
type subjects struct {
	options
	berth   *berth
	peers   []*peer // Berth's among them
	leftOut []string
}

// startAll starts Berth and its peers. A peer that does not start on this machine is left out.
func startAll(ctx context.Context, o options) (*subjects, error) {
	s := &subjects{options: o}
	b, err := startBerth(o)
	s.berth, s.peers = b, []*peer{b.peer}
	if err != nil {
		return s, err
	}
	starts := []func(options) (*peer, error){newLibrary, newCrun, newFloors}
	if !o.quick {
		starts = append(starts, newRunc, startDocker, startPodman)
	}
	for _, start := range starts {
		if err := ctx.Err(); err != nil {
			return s, err
		}
		p, err := start(o)
		s.peers = append(s.peers, p)
		if err != nil {
			fmt.Fprintf(os.Stderr, "bench: %s is left out: %v\n", p.name, err)
			s.leftOut = append(s.leftOut, fmt.Sprintf("%s: %v", p.name, err))
			p.contenders, p.loads = nil, nil
		}
	}
	return s, nil
}

func (s *subjects) close() (err error) {
	for _, p := range s.peers {
		err = errors.Join(err, p.close())
	}
	return err
}

// contenders are those of one group, of all peers.
func (s *subjects) contenders(group string) (cs []*contender) {
	for _, p := range s.peers {
		for _, c := range p.contenders {
			if c.group == group && (s.match == nil || s.match.MatchString(c.name) || c.name == crunBare) {
				cs = append(cs, c)
			}
		}
	}
	return cs
}
