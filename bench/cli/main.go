// Command cli times whole processes of the command line, from before they exist until they have been waited for, and
// counts their own CPU time and page faults. The engine that they ask must be there already: bench/cli.sh starts one.
//
//	cli -empty PROGRAM [-n ROUNDS] BERTH...
//
// Several programs, such as that of another commit, take turns; PROGRAM does nothing, which is what any Go program
// takes. The table goes to standard output.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"berth/bench/machine"
)

// commands of each program; the container c sleeps.
var commands = [][]string{{"--version"}, {"ps"}, {"version"}, {"exec", "c", "true"}, {"run", "--rm", "--network", "none", "bench", "true"}}

func main() {
	n := flag.Int("n", 200, "rounds")
	empty := flag.String("empty", "", "program that does nothing")
	flag.Parse()
	if flag.NArg() == 0 || *empty == "" {
		flag.Usage()
		os.Exit(2)
	}
	if err := compare(*n, *empty, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "cli:", err)
		os.Exit(1)
	}
}

// subject is one command line and what was measured of it.
type subject struct {
	args      []string
	wall, cpu []time.Duration
	faults    []int64
}

func compare(rounds int, empty string, programs []string) error {
	subjects := []*subject{{args: []string{empty}}}
	for _, c := range commands {
		for _, p := range programs {
			subjects = append(subjects, &subject{args: append([]string{p}, c...)})
		}
	}
	for round := range rounds + 1 {
		for _, s := range subjects {
			if err := s.run(round > 0); err != nil { // the first round warms up
				return err
			}
		}
	}
	fmt.Printf("%s; %d rounds\n\n", machine.Describe(), rounds)
	w := tabwriter.NewWriter(os.Stdout, 0, 1, 2, ' ', 0)
	fmt.Fprintln(w, "COMMAND\tMEDIAN ms\t10 % ms\tCPU ms\tPAGE FAULTS")
	for _, s := range subjects {
		fmt.Fprintf(w, "%s\t%.2f\t%.2f\t%.2f\t%d\n", strings.Join(s.args, " "), ms(at(s.wall, 50)), ms(at(s.wall, 10)), ms(at(s.cpu, 50)), at(s.faults, 50))
	}
	return w.Flush()
}

// run runs the command line once, and not at once after another: the daemons tidy up after a launch.
func (s *subject) run(count bool) error {
	time.Sleep(20 * time.Millisecond)
	cmd := exec.Command(s.args[0], s.args[1:]...)
	began := time.Now()
	err := cmd.Run()
	took := time.Since(began)
	if err != nil {
		return fmt.Errorf("%s: %w", strings.Join(s.args, " "), err)
	}
	if count {
		usage := cmd.ProcessState.SysUsage().(*syscall.Rusage)
		s.wall = append(s.wall, took)
		s.cpu = append(s.cpu, cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime())
		s.faults = append(s.faults, usage.Minflt)
	}
	return nil
}

// at is the value below which that many percent lie.
func at[T time.Duration | int64](list []T, percent int) T {
	slices.Sort(list)
	return list[min(len(list)-1, len(list)*percent/100)]
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
