package main

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"berth/cli/apiv1"
)

// completeNames teaches the shells the names of containers, images, networks, volumes and jobs. The first word of a
// command's usage line after its name says what it takes.
func completeNames(a *app, c *cobra.Command) {
	for _, sub := range c.Commands() {
		sub.DisableFlagsInUseLine = true // the usage lines say [OPTIONS] themselves
		completeNames(a, sub)
		if sub.ValidArgsFunction != nil || sub.HasSubCommands() {
			continue
		}
		fields := strings.Fields(strings.ReplaceAll(sub.Use, "[OPTIONS] ", ""))
		if len(fields) < 2 {
			continue
		}
		list := a.namesOf(strings.Trim(fields[1], "[]."), sub.Name())
		if list == nil {
			continue
		}
		many := strings.Contains(sub.Use, "...")
		sub.ValidArgsFunction = func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 && (!many || cmd.Name() == "run" || cmd.Name() == "create" || cmd.Name() == "exec") {
				return nil, cobra.ShellCompDirectiveDefault
			}
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			e, err := a.connect()
			if err != nil {
				return nil, cobra.ShellCompDirectiveError
			}
			defer e.Close()
			return list(ctx, e), cobra.ShellCompDirectiveNoFileComp
		}
	}
}

// namesOf gives the lister for a word of a usage line.
func (a *app) namesOf(word, command string) func(context.Context, *engine) []string {
	switch word {
	case "CONTAINER", "NAME":
		all := command != "exec" && command != "stop" && command != "kill" && command != "attach" && command != "top" && command != "pause"
		return func(ctx context.Context, e *engine) (out []string) {
			r, _ := e.containers.List(ctx, &apiv1.ListRequest{All: all})
			for _, c := range r.GetContainers() {
				out = append(out, c.GetName())
			}
			return out
		}
	case "IMAGE", "NAME[:TAG", "NAME[:TAG|@DIGEST":
		return func(ctx context.Context, e *engine) (out []string) {
			r, _ := e.images.List(ctx, &apiv1.ImageServiceListRequest{})
			for _, i := range r.GetImages() {
				out = append(out, i.GetTags()...)
			}
			return out
		}
	case "NETWORK":
		return func(ctx context.Context, e *engine) (out []string) {
			r, _ := e.networks.List(ctx, &apiv1.NetworkServiceListRequest{})
			for _, n := range r.GetNetworks() {
				out = append(out, n.GetName())
			}
			return out
		}
	case "VOLUME":
		return func(ctx context.Context, e *engine) (out []string) {
			r, _ := e.volumes.List(ctx, &apiv1.VolumeServiceListRequest{})
			for _, v := range r.GetVolumes() {
				out = append(out, v.GetName())
			}
			return out
		}
	case "JOB":
		return func(ctx context.Context, e *engine) (out []string) {
			r, _ := e.jobs.List(ctx, &apiv1.JobServiceListRequest{PageSize: 50})
			for _, j := range r.GetJobs() {
				out = append(out, j.GetId()+"\t"+j.GetKind()+" "+j.GetTarget())
			}
			return out
		}
	}
	return nil
}
