// Scale says what starts cost on machines that are not at hand. It measures the serial sections of the kernel and of the
// engine on this one, as functions of how many containers there are (kernel.go), and runs of the engine (engine.go);
// simulates both with more cores and containers (model.go, package queue); and holds the simulation against runs that it
// has not seen (results.go). docs/scale.md has the outcome.
//
// bench/scale.sh prepares the namespaces and the disk, and starts it. With -from nothing is measured: the tables are made
// again from the results of an earlier run.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"berth/bench/machine"
	"berth/bench/orders"
)

type options struct {
	work, bin, from, out, docs string
	counts                     []int
	only                       string
}

// Threads that joined a control group are to end, which the first thread of a process cannot: it is main's alone.
func init() { runtime.LockOSThread() }

func main() {
	var o options
	counts := "1,100,500,1000"
	flag.StringVar(&o.work, "work", "", "directory for all state, on the file system to measure on")
	flag.StringVar(&o.bin, "bin", "bin", "directory with Berth's programs")
	flag.StringVar(&o.from, "from", "", "make the tables of these results, and measure nothing")
	flag.StringVar(&o.out, "out", "", "file for the results")
	flag.StringVar(&o.docs, "docs", "", "page whose tables are to be brought up to date, with pictures in img/ beside it")
	flag.StringVar(&counts, "n", counts, "numbers of containers to measure beside")
	flag.StringVar(&o.only, "only", "", "measure only the probes of these names, with commas between, and print them")
	flag.Parse()
	for _, word := range strings.Split(counts, ",") {
		n, err := strconv.Atoi(word)
		if err != nil || n < 1 {
			fmt.Fprintf(os.Stderr, "scale: -n %s: want numbers from 1 with commas between\n", counts)
			os.Exit(2)
		}
		o.counts = append(o.counts, n)
	}
	if o.work == "" && o.from == "" || flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "scale: start it with bench/scale.sh")
		os.Exit(2)
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	if err := run(ctx, o); err != nil {
		if ctx.Err() != nil {
			err = errors.New("interrupted")
		}
		fmt.Fprintln(os.Stderr, "scale:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	var r Results
	if o.from != "" {
		if r, err = readResults(o.from); err != nil {
			return err
		}
	} else {
		if r, err = measure(ctx, o); err != nil || o.only != "" {
			return err
		}
		if o.out != "" {
			if err := r.write(o.out); err != nil {
				return err
			}
		}
	}
	rep, err := newReport(&r)
	if err != nil {
		return err
	}
	fmt.Println(rep.text())
	if o.docs != "" {
		if err := rep.write(o.docs); err != nil {
			return err
		}
	}
	return judge(rep.checks)
}

// say tells how far it is.
func say(text string) { fmt.Fprintln(os.Stderr, "scale:", text) }

func measure(ctx context.Context, o options) (r Results, err error) {
	r = Results{Date: time.Now().UTC().Format(time.DateOnly), Host: machine.Describe(), Load: machine.Load(), Cores: runtime.NumCPU()}
	probes := kernelProbes(o.work)
	if o.only != "" {
		var chosen []*probe
		for _, p := range probes {
			if strings.Contains(","+o.only+",", ","+p.name+",") {
				chosen = append(chosen, p)
			}
		}
		probes = chosen
	}
	if len(probes) == 0 {
		return r, fmt.Errorf("-only %s: there is no such probe", o.only)
	}
	r.Measured, r.LeftOut = runProbes(ctx, probes, o.counts, say)
	for _, l := range r.LeftOut {
		say("left out: " + l)
	}
	if err := ctx.Err(); err != nil || o.only != "" {
		return r, err
	}
	return r, r.engine(ctx, o)
}

// crowdClients are as many as keep both processors of the machine busy.
const crowdClients = 8

// loads are the clients that run at once, and how often each of the runs is.
var loads = []struct{ clients, runs int }{{1, 80}, {2, 120}, {4, 160}, {crowdClients, 240}, {16, 240}}

// engine measures runs beside each number of containers.
func (r *Results) engine(ctx context.Context, o options) (err error) {
	image, err := machine.Image(o.work)
	if err != nil {
		return err
	}
	e, err := startEngine(o.work, o.bin, image)
	defer func() { err = errors.Join(err, e.close()) }()
	if err != nil {
		return err
	}
	if _, err := e.client.ask(ctx, orders.Order{Op: "run", Count: 40, Workers: crowdClients}, truly(0)); err != nil {
		return err // the first ones dial, and touch every page
	}
	for _, n := range o.counts {
		took, err := e.fill(ctx, n)
		if err != nil {
			return err
		}
		ms := func(d time.Duration) float64 { return d.Seconds() * 1e3 }
		r.Starts = append(r.Starts, Point{float64(n), ms(quantile(took[max(len(took)-50, 0):], 0.5))})
		time.Sleep(settle)
		r.Memory = append(r.Memory, e.memory())
		r.MonitorFDs = append(r.MonitorFDs, Point{float64(n), e.monitorFDs()})
		for _, l := range loads {
			b, err := e.burst(ctx, l.clients, l.runs)
			if err != nil {
				return err
			}
			r.Bursts = append(r.Bursts, b)
			say(fmt.Sprintf("%d containers, %2d clients: %.0f/s, p50 %.1f ms, p99 %.1f ms, CPU %.1f ms", n, l.clients, b.Rate, b.P50, b.P99, b.CPU))
		}
		slot, err := e.slotTime(ctx)
		if err != nil {
			return err
		}
		r.Slots = append(r.Slots, slot)
		list, err := e.listTime()
		if err != nil {
			return err
		}
		r.Lists = append(r.Lists, Point{float64(n), list})
	}
	return nil
}

// listTime is the median of `berth ps`, in ms.
func (e *engine) listTime() (float64, error) {
	var all []float64
	for range 15 {
		began := time.Now()
		if err := e.cli("ps"); err != nil {
			return 0, err
		}
		all = append(all, time.Since(began).Seconds()*1e3)
	}
	return quantile(all, 0.5), nil
}

// monitorFDs is how many descriptors the monitor holds.
func (e *engine) monitorFDs() float64 {
	for _, pid := range e.charge.Processes() {
		if exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); filepath.Base(exe) == "berth-monitor" {
			entries, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
			return float64(len(entries))
		}
	}
	return 0
}
