package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"berth/cli/apiv1"
	"berth/cli/flags"
	"berth/cli/format"
)

type networkRow struct {
	ID       string `header:"NETWORK ID"`
	Name     string
	Driver   string
	Scope    string
	Subnet   string
	Internal string
	Labels   string
}

func (a *app) networkNoun() *cobra.Command {
	c := noun("network", "Manage networks")
	c.AddCommand(a.networkLsCommand(), a.networkInspectCommand(), a.networkCreateCommand(), a.networkRmCommand(), a.networkPruneCommand(), a.networkConnectCommand(), a.networkDisconnectCommand())
	return c
}

func (a *app) networkLsCommand() *cobra.Command {
	var quiet, noTrunc bool
	var filters []string
	var layout string
	c := &cobra.Command{
		Use: "ls [OPTIONS]", Aliases: []string{"list"}, Short: "List networks", Args: needArgs(0, 0), Example: "  berth network ls",
		RunE: plain(func(cmd *cobra.Command, _ []string) error {
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			r, err := e.networks.List(cmd.Context(), &apiv1.NetworkServiceListRequest{Filters: filters})
			if err != nil {
				return err
			}
			var rows []networkRow
			for _, n := range r.GetNetworks() {
				rows = append(rows, networkRow{shortID(n.GetId(), noTrunc), n.GetName(), n.GetDriver(), "local", n.GetSubnet(), fmt.Sprint(n.GetInternal()), labelsText(n.GetLabels())})
			}
			if quiet {
				for _, r := range rows {
					fmt.Fprintln(cmd.OutOrStdout(), r.ID)
				}
				return nil
			}
			return format.Rows(cmd.OutOrStdout(), layout, []string{"ID", "Name", "Driver", "Scope", "Subnet"}, rows)
		}),
	}
	f := c.Flags()
	f.BoolVarP(&quiet, "quiet", "q", false, "only ids")
	f.BoolVar(&noTrunc, "no-trunc", false, "do not shorten")
	flags.Array(f, &filters, "filter", "f", "only those that match: name=, id=, driver=, label=")
	f.StringVar(&layout, "format", "", "table, json, or a template")
	return c
}

func (a *app) networkInspectCommand() *cobra.Command {
	var layout string
	c := &cobra.Command{
		Use: "inspect [OPTIONS] NETWORK [NETWORK...]", Short: "Show all about networks", Args: needArgs(1, -1), Example: "  berth network inspect bridge",
		RunE: plain(func(cmd *cobra.Command, args []string) error {
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			return inspectAll(cmd, args, layout, func(n string) (any, error) { return inspectNetwork(cmd, e, n) })
		}),
	}
	c.Flags().StringVarP(&layout, "format", "f", "", "json or a template")
	return c
}

func (a *app) networkCreateCommand() *cobra.Command {
	r := &apiv1.NetworkServiceCreateRequest{}
	var labels, options []string
	c := &cobra.Command{
		Use: "create [OPTIONS] NETWORK", Short: "Create a network", Args: needArgs(1, 1), Example: "  berth network create --subnet 10.5.0.0/24 backend",
		RunE: plain(func(cmd *cobra.Command, args []string) error {
			r.Name, r.Labels, r.Options = args[0], keyValues(labels), keyValues(options)
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			resp, err := e.networks.Create(cmd.Context(), r)
			if err != nil {
				return err
			}
			for _, w := range resp.GetWarnings() {
				fmt.Fprintln(cmd.ErrOrStderr(), "warning:", w)
			}
			fmt.Fprintln(cmd.OutOrStdout(), resp.GetId())
			return nil
		}),
	}
	f := c.Flags()
	f.StringVarP(&r.Driver, "driver", "d", "bridge", "driver")
	f.StringVar(&r.Subnet, "subnet", "", "subnet such as 10.5.0.0/24 (default: a free one)")
	f.StringVar(&r.Gateway, "gateway", "", "address of the bridge")
	f.BoolVar(&r.Internal, "internal", false, "no way out of the host")
	f.BoolVar(&r.Ipv6, "ipv6", false, "with IPv6")
	flags.Array(f, &labels, "label", "", "set label KEY=VALUE")
	flags.Array(f, &options, "opt", "o", "driver option KEY=VALUE")
	return c
}

func keyValues(list []string) map[string]string {
	m := make(map[string]string, len(list))
	for _, l := range list {
		k, v, _ := strings.Cut(l, "=")
		m[k] = v
	}
	return m
}

func (a *app) networkRmCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rm NETWORK [NETWORK...]", Aliases: []string{"remove"}, Short: "Remove networks", Args: needArgs(1, -1), Example: "  berth network rm backend",
		RunE: plain(func(cmd *cobra.Command, args []string) error {
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			return each(cmd, args, func(n string) (string, error) {
				_, err := e.networks.Remove(cmd.Context(), &apiv1.NetworkServiceRemoveRequest{Network: n})
				return n, err
			})
		}),
	}
}

func (a *app) networkPruneCommand() *cobra.Command {
	var force bool
	var filters []string
	c := &cobra.Command{
		Use: "prune [OPTIONS]", Short: "Remove unused networks", Args: needArgs(0, 0), Example: "  berth network prune -f",
		RunE: plain(func(cmd *cobra.Command, _ []string) error {
			if !force && !confirm(cmd, "This removes all networks that no container uses.") {
				return nil
			}
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			r, err := e.networks.Prune(cmd.Context(), &apiv1.NetworkServicePruneRequest{Filters: filters})
			for _, n := range r.GetNames() {
				fmt.Fprintln(cmd.OutOrStdout(), n)
			}
			return err
		}),
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "do not ask")
	flags.Array(c.Flags(), &filters, "filter", "", "only those that match: label=, until=")
	return c
}

func (a *app) networkConnectCommand() *cobra.Command {
	r := &apiv1.NetworkServiceConnectRequest{}
	c := &cobra.Command{
		Use: "connect [OPTIONS] NETWORK CONTAINER", Short: "Connect a container to a further network", Args: needArgs(2, 2), Example: "  berth network connect backend web",
		RunE: plain(func(cmd *cobra.Command, args []string) error {
			r.Network, r.Container = args[0], args[1]
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			_, err = e.networks.Connect(cmd.Context(), r)
			return err
		}),
	}
	flags.Slice(c.Flags(), &r.Aliases, "alias", "", "further name in the network")
	c.Flags().StringVar(&r.Ip, "ip", "", "IPv4 address")
	return c
}

func (a *app) networkDisconnectCommand() *cobra.Command {
	r := &apiv1.NetworkServiceDisconnectRequest{}
	c := &cobra.Command{
		Use: "disconnect [OPTIONS] NETWORK CONTAINER", Short: "Disconnect a container from a network", Args: needArgs(2, 2), Example: "  berth network disconnect backend web",
		RunE: plain(func(cmd *cobra.Command, args []string) error {
			r.Network, r.Container = args[0], args[1]
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			_, err = e.networks.Disconnect(cmd.Context(), r)
			return err
		}),
	}
	c.Flags().BoolVarP(&r.Force, "force", "f", false, "although the container is gone")
	return c
}
