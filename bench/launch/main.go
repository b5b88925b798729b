// Launch times what users wait for when they start containers, for Berth and for its peers in the same run, and holds
// the outcome against what the engine promises (bars.go).
//
// Engines are started by hand, with state of their own; each peer's processes live in a control group of their own,
// which counts their CPU time. Contenders take turns: a noisy moment of the machine hits all of them alike. The ratios
// are what to look at; the milliseconds are this machine's.
//
// bench/launch.sh prepares the namespaces and the disk, and starts it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"berth/bench/machine"
)

type options struct {
	work, bin, out string
	image          string // a tar of a root file system
	rounds, warm   int
	only           []string // names of groups; empty: all
	match          *regexp.Regexp
	quick          bool
}

func (o options) wants(group string) bool { return len(o.only) == 0 || slices.Contains(o.only, group) }

// whole is whether all is measured, as a report needs it.
func (o options) whole() bool { return !o.quick && len(o.only) == 0 && o.match == nil }

// Threads that joined a control group are to end, which the first thread of a process cannot: it is main's alone.
func init() { runtime.LockOSThread() }

func main() {
	var o options
	var only string
	flag.StringVar(&o.work, "work", "", "directory for all state, on the file system to measure on")
	flag.StringVar(&o.bin, "bin", "bin", "directory with Berth's programs")
	flag.StringVar(&o.out, "out", "bench/results", "directory for the report")
	flag.IntVar(&o.rounds, "n", 0, "rounds (default 30, or 15 when quick)")
	flag.IntVar(&o.warm, "warm", 3, "rounds before those that count")
	flag.StringVar(&only, "only", "", "groups to measure, with commas between; without it all, and a report is written: "+strings.Join(groupNames(), ","))
	flag.Func("match", "take only contenders whose name this regular expression matches, and crun", func(text string) (err error) {
		o.match, err = regexp.Compile(text)
		return err
	})
	flag.BoolVar(&o.quick, "quick", false, "for development: under a minute, without docker, podman and runc")
	flag.Parse()
	if only != "" {
		o.only = strings.Split(only, ",")
	}
	if err := o.check(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	err := run(ctx, o)
	if ctx.Err() != nil {
		err = errors.New("interrupted")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func (o *options) check() error {
	if o.work == "" || flag.NArg() > 0 {
		return errors.New("start it with bench/launch.sh")
	}
	for _, name := range o.only {
		if !slices.Contains(groupNames(), name) {
			return fmt.Errorf("there is no group %q: there are %s", name, strings.Join(groupNames(), ", "))
		}
	}
	if o.quick && len(o.only) == 0 {
		o.only = []string{"run", "exec", "client"}
	}
	if o.rounds <= 0 {
		o.rounds = map[bool]int{false: 30, true: 15}[o.quick]
	}
	return nil
}

func run(ctx context.Context, o options) (err error) {
	began, load := time.Now(), machine.Load()
	if o.image, err = machine.Image(o.work); err != nil {
		return err
	}
	s, err := startAll(ctx, o)
	defer func() { err = errors.Join(err, s.close()) }()
	if err != nil {
		return err
	}
	r := report{host: machine.Describe(), load: load, versions: versions(s.peers), leftOut: s.leftOut, rounds: o.rounds}
	for _, g := range tasks {
		if !o.wants(g.name) {
			continue
		}
		fmt.Fprintf(os.Stderr, "bench: %3.0f s: %s\n", time.Since(began).Seconds(), g.name)
		found, err := g.measure(ctx, s, g.group)
		if err != nil {
			return fmt.Errorf("%s: %w", g.name, err)
		}
		r.findings = append(r.findings, found...)
	}
	r.took = time.Since(began)
	fmt.Print(r.text())
	if o.whole() {
		if err := r.write(o.out); err != nil {
			return err
		}
	}
	return r.failure(o.whole())
}

// failure is an error when a bar was missed, or was not judged although all was to be measured.
func (r report) failure(whole bool) error {
	count := map[verdict]int{}
	for _, j := range r.judged() {
		count[j.verdict]++
	}
	if count[missed] > 0 || count[notMeasured] > 0 && whole {
		return fmt.Errorf("%d bars met, %d missed, %d open, %d not measured", count[met], count[missed], count[open], count[notMeasured])
	}
	return nil
}
