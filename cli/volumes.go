package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"berth/cli/apiv1"
	"berth/cli/flags"
	"berth/cli/format"
)

type volumeRow struct {
	Driver     string
	Name       string `header:"VOLUME NAME"`
	Mountpoint string
	Scope      string
	Labels     string
}

func (a *app) volumeNoun() *cobra.Command {
	c := noun("volume", "Manage volumes")
	c.AddCommand(a.volumeLsCommand(), a.volumeInspectCommand(), a.volumeCreateCommand(), a.volumeRmCommand(), a.volumePruneCommand())
	return c
}

func (a *app) volumeLsCommand() *cobra.Command {
	var quiet bool
	var filters []string
	var layout string
	c := &cobra.Command{
		Use: "ls [OPTIONS]", Aliases: []string{"list"}, Short: "List volumes", Args: needArgs(0, 0), Example: "  berth volume ls",
		RunE: plain(func(cmd *cobra.Command, _ []string) error {
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			r, err := e.volumes.List(cmd.Context(), &apiv1.VolumeServiceListRequest{Filters: filters})
			if err != nil {
				return err
			}
			var rows []volumeRow
			for _, v := range r.GetVolumes() {
				rows = append(rows, volumeRow{v.GetDriver(), v.GetName(), v.GetMountpoint(), "local", labelsText(v.GetLabels())})
			}
			if quiet {
				for _, r := range rows {
					fmt.Fprintln(cmd.OutOrStdout(), r.Name)
				}
				return nil
			}
			return format.Rows(cmd.OutOrStdout(), layout, []string{"Driver", "Name"}, rows)
		}),
	}
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "only names")
	flags.Array(c.Flags(), &filters, "filter", "f", "only those that match: name=, label=, dangling=")
	c.Flags().StringVar(&layout, "format", "", "table, json, or a template")
	return c
}

func (a *app) volumeInspectCommand() *cobra.Command {
	var layout string
	c := &cobra.Command{
		Use: "inspect [OPTIONS] VOLUME [VOLUME...]", Short: "Show all about volumes", Args: needArgs(1, -1), Example: "  berth volume inspect data",
		RunE: plain(func(cmd *cobra.Command, args []string) error {
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			return inspectAll(cmd, args, layout, func(n string) (any, error) { return inspectVolume(cmd, e, n) })
		}),
	}
	c.Flags().StringVarP(&layout, "format", "f", "", "json or a template")
	return c
}

func (a *app) volumeCreateCommand() *cobra.Command {
	r := &apiv1.VolumeServiceCreateRequest{}
	var labels, options []string
	c := &cobra.Command{
		Use: "create [OPTIONS] [VOLUME]", Short: "Create a volume", Args: needArgs(0, 1), Example: "  berth volume create data",
		RunE: plain(func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				r.Name = args[0]
			}
			r.Labels, r.Options = keyValues(labels), keyValues(options)
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			v, err := e.volumes.Create(cmd.Context(), r)
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), v.GetVolume().GetName())
			return nil
		}),
	}
	c.Flags().StringVarP(&r.Driver, "driver", "d", "local", "driver")
	flags.Array(c.Flags(), &labels, "label", "", "set label KEY=VALUE")
	flags.Array(c.Flags(), &options, "opt", "o", "driver option KEY=VALUE")
	return c
}

func (a *app) volumeRmCommand() *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use: "rm [OPTIONS] VOLUME [VOLUME...]", Aliases: []string{"remove"}, Short: "Remove volumes", Args: needArgs(1, -1), Example: "  berth volume rm data",
		RunE: plain(func(cmd *cobra.Command, args []string) error {
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			return each(cmd, args, func(n string) (string, error) {
				_, err := e.volumes.Remove(cmd.Context(), &apiv1.VolumeServiceRemoveRequest{Volume: n, Force: force})
				return n, err
			})
		}),
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "succeed when there is none of that name")
	return c
}

func (a *app) volumePruneCommand() *cobra.Command {
	var all, force bool
	var filters []string
	c := &cobra.Command{
		Use: "prune [OPTIONS]", Short: "Remove unused volumes", Args: needArgs(0, 0), Example: "  berth volume prune -f",
		RunE: plain(func(cmd *cobra.Command, _ []string) error {
			if !force && !confirm(cmd, "This removes all anonymous volumes that no container uses.") {
				return nil
			}
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			r, err := e.volumes.Prune(cmd.Context(), &apiv1.VolumeServicePruneRequest{All: all, Filters: filters})
			if err != nil {
				return err
			}
			printPruned(cmd, "Volumes", r.GetNames(), r.GetReclaimedBytes())
			return nil
		}),
	}
	c.Flags().BoolVarP(&all, "all", "a", false, "named ones too")
	c.Flags().BoolVarP(&force, "force", "f", false, "do not ask")
	flags.Array(c.Flags(), &filters, "filter", "", "only those that match: label=")
	return c
}
