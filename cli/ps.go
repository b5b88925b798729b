package main

import (
	"fmt"
	"sort"
	"strings"

	"github.com/spf13/cobra"

	"berth/cli/apiv1"
	"berth/cli/flags"
	"berth/cli/format"
)

// psRow has the columns of `ps`, named as in Docker's templates.
type psRow struct {
	ID         string `header:"CONTAINER ID"`
	Image      string
	Command    string
	CreatedAt  string `header:"CREATED AT"`
	RunningFor string `header:"CREATED"`
	Ports      string
	State      string
	Status     string
	Names      string
	Labels     string
	Mounts     string
	Networks   string
}

func (a *app) psCommand(name string) *cobra.Command {
	var all, quiet, noTrunc, latest bool
	var last int32
	var filters []string
	var layout string
	c := &cobra.Command{
		Use: name + " [OPTIONS]", Short: "List containers", Args: needArgs(0, 0),
		Example: "  berth ps -a --filter status=exited --format '{{.ID}} {{.Names}} {{.Status}}'",
		RunE: plain(func(cmd *cobra.Command, _ []string) error {
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			if latest {
				last = 1
			}
			list, err := listContainers(cmd, e, &apiv1.ListRequest{All: all || last > 0, Filters: filters, Last: last})
			if err != nil {
				return err
			}
			if quiet {
				for _, s := range list {
					fmt.Fprintln(cmd.OutOrStdout(), shortID(s.GetId(), noTrunc))
				}
				return nil
			}
			rows := make([]psRow, 0, len(list))
			for _, s := range list {
				rows = append(rows, newPsRow(s, noTrunc))
			}
			return format.Rows(cmd.OutOrStdout(), layout, []string{"ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names"}, rows)
		}),
	}
	f := c.Flags()
	f.BoolVarP(&all, "all", "a", false, "also those that do not run")
	f.BoolVarP(&quiet, "quiet", "q", false, "only ids")
	f.BoolVar(&noTrunc, "no-trunc", false, "do not shorten")
	f.BoolVarP(&latest, "latest", "l", false, "the newest one")
	f.Int32VarP(&last, "last", "n", 0, "the n newest")
	flags.Array(f, &filters, "filter", "f", "only those that match: name=, id=, status=, label=, ancestor=, …")
	f.StringVar(&layout, "format", "", "table, json, or a template")
	return c
}

// listContainers fetches all pages.
func listContainers(cmd *cobra.Command, e *engine, r *apiv1.ListRequest) ([]*apiv1.ContainerSummary, error) {
	var out []*apiv1.ContainerSummary
	for {
		p, err := e.containers.List(cmd.Context(), r)
		if err != nil {
			return nil, err
		}
		out = append(out, p.GetContainers()...)
		if p.GetNextPageToken() == "" {
			return out, nil
		}
		r.PageToken = p.GetNextPageToken()
	}
}

func newPsRow(s *apiv1.ContainerSummary, noTrunc bool) psRow {
	command := fmt.Sprintf("%q", s.GetCommand())
	if r := []rune(command); !noTrunc && len(r) > 20 {
		command = string(r[:19]) + "…"
	}
	created := s.GetCreatedAt().AsTime().Local()
	var mounts []string
	for _, m := range s.GetMounts() {
		name := m.GetName()
		if name == "" {
			name = m.GetSource()
		}
		mounts = append(mounts, name)
	}
	return psRow{
		ID: shortID(s.GetId(), noTrunc), Image: s.GetImage(), Command: command,
		CreatedAt: created.Format("2006-01-02 15:04:05 -0700 MST"), RunningFor: format.Ago(created),
		Ports: portsText(s.GetPorts()), State: stateText(s.GetState()), Status: s.GetStatus(), Names: s.GetName(),
		Labels: labelsText(s.GetLabels()), Mounts: strings.Join(mounts, ","), Networks: strings.Join(s.GetNetworks(), ","),
	}
}

func shortID(id string, whole bool) string {
	if whole {
		return id
	}
	return format.ShortID(id)
}

// stateText is the state in Docker's word: "running".
func stateText(s apiv1.ContainerState) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "CONTAINER_STATE_"))
}

// portsText is "0.0.0.0:8080->80/tcp, 9000/udp".
func portsText(ports []*apiv1.PortMapping) string {
	out := make([]string, 0, len(ports))
	for _, p := range ports {
		proto := p.GetProtocol()
		if proto == "" {
			proto = "tcp"
		}
		inside := fmt.Sprintf("%d/%s", p.GetContainerPort(), proto)
		if p.GetHostPort() > 0 {
			inside = hostAddress(p) + "->" + inside
		}
		out = append(out, inside)
	}
	sort.Strings(out)
	return strings.Join(out, ", ")
}

func hostAddress(p *apiv1.PortMapping) string {
	ip := p.GetHostIp()
	if ip == "" {
		ip = "0.0.0.0"
	}
	if strings.Contains(ip, ":") {
		ip = "[" + ip + "]"
	}
	return fmt.Sprintf("%s:%d", ip, p.GetHostPort())
}

func labelsText(m map[string]string) string {
	out := make([]string, 0, len(m))
	for k, v := range m {
		out = append(out, k+"="+v)
	}
	sort.Strings(out)
	return strings.Join(out, ",")
}
