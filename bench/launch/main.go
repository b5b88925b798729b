// Launch times what users wait for when they start containers, for Berth and for its peers in the same run.
//
// Engines are started by hand, with state of their own; each contender's processes live in a control group of its own,
// which counts their CPU time. In every round each contender runs once, in an order that rotates: a noisy moment of the
// machine hits all of them alike. The ratios are what to look at; the milliseconds are this machine's.
//
// bench/launch.sh prepares the namespaces and the disk, and starts it.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"

	"berth/bench/machine"
)

type options struct {
	work, bin, out string
	rounds, warm   int
}

// Threads that joined a control group are to end, which the first thread of a process cannot: it is main's alone.
func init() { runtime.LockOSThread() }

func main() {
	var o options
	flag.StringVar(&o.work, "work", "", "directory for all state, on the file system to measure on")
	flag.StringVar(&o.bin, "bin", "bin", "directory with Berth's programs")
	flag.StringVar(&o.out, "out", "bench/results", "directory for the report")
	flag.IntVar(&o.rounds, "n", 60, "rounds")
	flag.IntVar(&o.warm, "warm", 3, "rounds before those that count")
	flag.Parse()
	if o.work == "" || flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "bench: start it with bench/launch.sh")
		os.Exit(2)
	}
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(o options) (err error) {
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM)

	image, err := makeImage(o.work)
	if err != nil {
		return err
	}
	var peers []*peer
	defer func() {
		for _, p := range peers {
			err = errors.Join(err, p.close())
		}
	}()
	for _, start := range []func(options, string) (*peer, error){startBerth, startDocker, startPodman, newCrun, newRunc, newFloors} {
		p, e := start(o, image)
		if p != nil {
			peers = append(peers, p)
		}
		if e != nil {
			if p == nil || p.required {
				return e
			}
			fmt.Fprintln(os.Stderr, "bench: left out:", e)
			p.contenders = nil
		}
	}

	var tables []table
	for _, group := range groups {
		var cs []*contender
		for _, p := range peers {
			for _, c := range p.contenders {
				if c.group == group.name {
					cs = append(cs, c)
				}
			}
		}
		fmt.Fprintf(os.Stderr, "bench: %s, %d contenders, %d rounds\n", group.name, len(cs), o.rounds)
		if err := measure(cs, o.warm, o.rounds, interrupted); err != nil {
			return err
		}
		tables = append(tables, newTable(group, cs))
	}

	r := report{host: machine.Describe(), peers: versions(peers), rounds: o.rounds, tables: tables, bars: judge(tables)}
	fmt.Print(r.text())
	if err := os.WriteFile(filepath.Join(o.out, "launch.md"), []byte(r.markdown()), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(o.out, "launch.svg"), []byte(plot(tables)), 0o644)
}
