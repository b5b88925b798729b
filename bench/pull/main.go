// Pull times how long a cold pull takes, for Berth and for its peers in the same run, from a real docker-registry on the
// loopback.
//
// Each pull begins with a new, journaled ext4 and an engine that was just started on it, so nothing is there before and
// nothing was deleted. In every round each engine pulls each image once, in an order that rotates. Beside the engines
// stand floors: what it takes merely to decompress the layers, and to unpack them with tar, all at once.
//
// bench/pull.sh prepares the namespaces and the directories, and starts it.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"berth/bench/machine"
)

type options struct {
	work, bin, out, cache, debian string
	images, engines               string
	rounds                        int
	quick                         bool
}

// Threads that joined a control group are to end, which the first thread of a process cannot: it is main's alone.
func init() { runtime.LockOSThread() }

func main() {
	var o options
	flag.StringVar(&o.work, "work", "", "directory for disk images and sockets")
	flag.StringVar(&o.bin, "bin", "bin", "directory with Berth's programs")
	flag.StringVar(&o.out, "out", "bench/results", "directory for the report")
	flag.StringVar(&o.cache, "cache", "", "directory that keeps the images between runs")
	flag.StringVar(&o.debian, "debian", "", "tar of a Debian root file system")
	flag.StringVar(&o.images, "images", "", "only images whose name has this in it; moves: save, push, commit and load; shapes: images of extreme shape, by graph driver")
	flag.StringVar(&o.engines, "engines", "", "only these, separated by commas, beside berth; no report")
	flag.IntVar(&o.rounds, "n", 3, "rounds")
	flag.BoolVar(&o.quick, "quick", false, "only Berth and the floors, one round, no report")
	flag.Parse()
	if o.work == "" || o.cache == "" || flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "bench: start it with bench/pull.sh")
		os.Exit(2)
	}
	if o.quick {
		o.rounds = 1
	}
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// contenders are the engines that take turns, berth first.
func (o options) contenders(reg *registry) []*engine {
	all := []*engine{newBerth(o, "berth", "overlay"), newBerth(o, "berth erofs", "erofs")}
	if !o.quick {
		all = append(all, newDocker(o), newPodman(o), newSkopeo(o), newContainerd(o))
	}
	all = append(all, newFloor("floor: decompress", reg, false), newFloor("floor: decompress, tar -x", reg, true))
	if o.engines == "" {
		return all
	}
	only := strings.Split(o.engines, ",")
	return slices.DeleteFunc(all, func(e *engine) bool { return !e.required && !slices.Contains(only, e.name) })
}

func run(o options) (err error) {
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM)

	reg, err := startRegistry(o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, reg.close()) }()

	engines := o.contenders(reg)

	if o.images == "shapes" {
		return measureShapes(o, engines[:2], reg)
	}
	var tables []table
	for _, img := range images {
		if !strings.Contains(img.name, o.images) {
			continue
		}
		t := table{image: img}
		for round := range o.rounds {
			for i := range engines {
				select {
				case s := <-interrupted:
					return fmt.Errorf("%v", s)
				default:
				}
				e := engines[(i+round)%len(engines)]
				m, err := e.measure(o, img, reg, 1)
				t.add(e, m, err)
				if err != nil && e.required {
					return fmt.Errorf("%s: %w", e.name, err)
				}
				fmt.Fprintf(os.Stderr, "bench: %s, round %d, %s: %s\n", img.name, round+1, e.name, m.text(err))
			}
		}
		t.sort()
		tables = append(tables, t)
	}
	crowd, err := measureCrowd(o, engines[0], reg)
	if err != nil {
		return err
	}
	times := map[*engine]moveTimes{}
	for range o.rounds {
		if !strings.Contains("moves", o.images) {
			break
		}
		if err := measureMoves(o, engines, times); err != nil {
			return err
		}
	}
	r := report{host: machine.Describe(), engines: engines, rounds: o.rounds, tables: tables, crowd: crowd, moves: times}
	r.judge()
	fmt.Print(r.text())
	if o.quick || o.images != "" || o.engines != "" {
		return nil
	}
	if err := os.WriteFile(filepath.Join(o.out, "pull.md"), []byte(r.markdown()), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(o.out, "pull.svg"), []byte(plot(tables)), 0o644)
}
