package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"berth/cli/apiv1"
	"berth/cli/flags"
	"berth/cli/rpc"
	"berth/cli/stages"
	"berth/cli/term"
	"berth/cli/wire"
)

// forEach is a command that does one call for each container named, prints the name, and reports every failure.
func (a *app) forEach(use, short, example string, call func(ctx context.Context, e *engine, name string) error) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Example: example, Args: needArgs(1, -1),
		RunE: plain(func(cmd *cobra.Command, args []string) error {
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			return each(cmd, args, func(name string) (string, error) { return name, call(cmd.Context(), e, name) })
		}),
	}
}

func (a *app) startCommand() *cobra.Command {
	var attach, interactive bool
	var keys string
	var trace stages.Wanted
	c := a.forEach("start [OPTIONS] CONTAINER [CONTAINER...]", "Start stopped containers", "  berth start web",
		func(ctx context.Context, e *engine, name string) error {
			began := time.Now()
			r, err := e.containers.Start(ctx, &apiv1.StartRequest{Container: name})
			if len(r.GetTrace()) > 0 && trace != stages.Nothing {
				stages.Print(os.Stderr, stages.Whole(r.GetTrace(), time.Since(began)), trace == stages.Steps)
			}
			for _, w := range r.GetWarnings() {
				fmt.Println("warning:", w)
			}
			return err
		})
	c.Flags().BoolVarP(&attach, "attach", "a", false, "attach to its output, and exit with its status")
	c.Flags().BoolVarP(&interactive, "interactive", "i", false, "attach stdin too")
	c.Flags().StringVar(&keys, "detach-keys", term.DefaultDetachKeys, "keys that leave the container running")
	addTrace(c.Flags(), &trace)
	many := c.RunE
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if !attach && !interactive {
			return many(cmd, args)
		}
		if len(args) != 1 {
			return usagef("", "only one container can be attached to")
		}
		if trace != stages.Nothing {
			return usagef("see the stages with `berth inspect`", "--trace and --attach do not go together")
		}
		e, err := a.connect()
		if err != nil {
			return failed(err)
		}
		defer e.Close()
		return a.attachTo(cmd.Context(), e, args[0], attachChoice{stdin: interactive, sigProxy: true, keys: keys, start: true})
	}
	return c
}

func (a *app) stopCommand() *cobra.Command {
	var seconds int
	var sig string
	var c *cobra.Command
	c = a.forEach("stop [OPTIONS] CONTAINER [CONTAINER...]", "Stop running containers", "  berth stop -t 30 web",
		func(ctx context.Context, e *engine, name string) error {
			_, err := e.containers.Stop(ctx, &apiv1.StopRequest{Container: name, Signal: sig, Timeout: stopTimeout(c, seconds)})
			return err
		})
	c.Flags().IntVarP(&seconds, "time", "t", 10, "seconds until it is killed; -1 waits for ever")
	c.Flags().IntVar(&seconds, "timeout", 10, "same as --time")
	c.Flags().StringVarP(&sig, "signal", "s", "", "signal to stop with")
	return c
}

// stopTimeout is unset unless the user gave one: the container has its own.
func stopTimeout(c *cobra.Command, seconds int) *wire.Duration {
	if !c.Flags().Changed("time") && !c.Flags().Changed("timeout") {
		return nil
	}
	return wire.NewDuration(time.Duration(seconds) * time.Second)
}

func (a *app) restartCommand() *cobra.Command {
	var seconds int
	var c *cobra.Command
	c = a.forEach("restart [OPTIONS] CONTAINER [CONTAINER...]", "Stop and start containers", "  berth restart web",
		func(ctx context.Context, e *engine, name string) error {
			_, err := e.containers.Restart(ctx, &apiv1.RestartRequest{Container: name, Timeout: stopTimeout(c, seconds)})
			return err
		})
	c.Flags().IntVarP(&seconds, "time", "t", 10, "seconds until it is killed")
	c.Flags().IntVar(&seconds, "timeout", 10, "same as --time")
	return c
}

func (a *app) killCommand() *cobra.Command {
	var sig string
	c := a.forEach("kill [OPTIONS] CONTAINER [CONTAINER...]", "Send a signal to running containers", "  berth kill -s HUP web",
		func(ctx context.Context, e *engine, name string) error {
			_, err := e.containers.Kill(ctx, &apiv1.KillRequest{Container: name, Signal: sig})
			return err
		})
	c.Flags().StringVarP(&sig, "signal", "s", "KILL", "signal, by name or number")
	return c
}

func (a *app) rmCommand() *cobra.Command {
	var force, volumes bool
	c := a.forEach("rm [OPTIONS] CONTAINER [CONTAINER...]", "Remove containers", "  berth rm -f web",
		func(ctx context.Context, e *engine, name string) error {
			_, err := e.containers.Remove(ctx, &apiv1.RemoveRequest{Container: name, Force: force, Volumes: volumes})
			if force && rpc.CodeOf(err) == rpc.NotFound {
				return &absent{err}
			}
			return err
		})
	c.Aliases = []string{"remove"}
	c.Flags().BoolVarP(&force, "force", "f", false, "kill it first when it runs")
	c.Flags().BoolVarP(&volumes, "volumes", "v", false, "also remove its anonymous volumes")
	return c
}

func (a *app) pauseCommand() *cobra.Command {
	return a.forEach("pause CONTAINER [CONTAINER...]", "Freeze all processes of containers", "  berth pause web",
		func(ctx context.Context, e *engine, name string) error {
			_, err := e.containers.Pause(ctx, &apiv1.PauseRequest{Container: name})
			return err
		})
}

func (a *app) unpauseCommand() *cobra.Command {
	return a.forEach("unpause CONTAINER [CONTAINER...]", "Let frozen containers go on", "  berth unpause web",
		func(ctx context.Context, e *engine, name string) error {
			_, err := e.containers.Unpause(ctx, &apiv1.UnpauseRequest{Container: name})
			return err
		})
}

func (a *app) waitCommand() *cobra.Command {
	return &cobra.Command{
		Use: "wait CONTAINER [CONTAINER...]", Short: "Wait until containers stop and print their exit codes",
		Example: "  berth wait job-1 job-2", Args: needArgs(1, -1),
		RunE: plain(func(cmd *cobra.Command, args []string) error {
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			return each(cmd, args, func(name string) (string, error) {
				r, err := e.containers.Wait(cmd.Context(), &apiv1.WaitRequest{Container: name})
				return fmt.Sprint(r.GetExit().GetCode()), err
			})
		}),
	}
}

func (a *app) renameCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rename CONTAINER NEW_NAME", Short: "Give a container another name", Example: "  berth rename web web-old", Args: needArgs(2, 2),
		RunE: plain(func(cmd *cobra.Command, args []string) error {
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			_, err = e.containers.Rename(cmd.Context(), &apiv1.RenameRequest{Container: args[0], Name: args[1]})
			return err
		}),
	}
}

func (a *app) updateCommand() *cobra.Command {
	r := &apiv1.Resources{}
	var memory, memorySwap, reservation, cpus string
	c := a.forEach("update [OPTIONS] CONTAINER [CONTAINER...]", "Change the limits of containers", "  berth update --memory 1g --cpus 2 web",
		func(ctx context.Context, e *engine, name string) error {
			resp, err := e.containers.Update(ctx, &apiv1.UpdateRequest{Container: name, Resources: r})
			for _, w := range resp.GetWarnings() {
				fmt.Println("warning:", w)
			}
			return err
		})
	f := c.Flags()
	f.StringVarP(&memory, "memory", "m", "", "memory limit")
	f.StringVar(&memorySwap, "memory-swap", "", "memory plus swap limit")
	f.StringVar(&reservation, "memory-reservation", "", "memory kept when the host runs short")
	f.StringVar(&cpus, "cpus", "", "number of CPUs")
	f.Int64VarP(&r.CpuShares, "cpu-shares", "c", 0, "relative CPU weight")
	f.Int64Var(&r.CpuQuotaUs, "cpu-quota", 0, "CPU time per period, in microseconds")
	f.Int64Var(&r.CpuPeriodUs, "cpu-period", 0, "length of a period, in microseconds")
	f.StringVar(&r.CpusetCpus, "cpuset-cpus", "", "CPUs to run on")
	f.StringVar(&r.CpusetMems, "cpuset-mems", "", "memory nodes to use")
	f.Int64Var(&r.PidsLimit, "pids-limit", 0, "limit of processes and threads")
	f.Int32Var(&r.BlkioWeight, "blkio-weight", 0, "relative block I/O weight")
	many := c.RunE
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if err := flags.Limits(r, memory, memorySwap, reservation, cpus); err != nil {
			return failed(usagef("see `berth update --help`", "%v", err))
		}
		return many(cmd, args)
	}
	return c
}

func (a *app) containerPruneCommand() *cobra.Command {
	var force bool
	var filters []string
	c := &cobra.Command{
		Use: "prune [OPTIONS]", Short: "Remove all stopped containers", Args: needArgs(0, 0),
		Example: "  berth container prune -f --filter until=24h",
		RunE: plain(func(cmd *cobra.Command, _ []string) error {
			if !force && !confirm(cmd, "This removes all stopped containers.") {
				return nil
			}
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			r, err := e.containers.Prune(cmd.Context(), &apiv1.PruneRequest{Filters: filters})
			if err != nil {
				return err
			}
			printPruned(cmd, "Containers", r.GetIds(), r.GetReclaimedBytes())
			return nil
		}),
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "do not ask")
	flags.Array(c.Flags(), &filters, "filter", "", "only those that match: label=…, until=…")
	return c
}
