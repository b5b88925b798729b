package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sort"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"berth/cli/apiv1"
	"berth/cli/flags"
	"berth/cli/format"
	"berth/internal/version"
)

func clientVersion() string { return version.String() }

func (a *app) systemNoun() *cobra.Command {
	c := noun("system", "Look after the engine as a whole")
	c.AddCommand(a.infoCommand(), a.eventsCommand(), a.dfCommand())
	return c
}

type versionInfo struct {
	Client clientInfo
	Server *serverInfo `json:",omitempty"`
}

type clientInfo struct{ Version, GitCommit, GoVersion, Os, Arch string }

type serverInfo struct {
	Version, GitCommit, GoVersion, APIVersion, Os, Arch, KernelVersion string
	Daemons                                                            []daemonInfo
}

type daemonInfo struct {
	Name, Version, Status string
	Pid                   int32
	Uid                   uint32
	Uptime                string
}

func (a *app) versionCommand() *cobra.Command {
	var layout string
	c := &cobra.Command{
		Use: "version [OPTIONS]", Short: "Show the versions of client and daemons", Args: needArgs(0, 0), Example: "  berth version -f '{{.Server.Version}}'",
		RunE: plain(func(cmd *cobra.Command, _ []string) error {
			v := versionInfo{Client: clientInfo{version.Number(), version.Commit(), runtime.Version(), runtime.GOOS, runtime.GOARCH}}
			serverErr := a.serverVersion(cmd, &v)
			if layout != "" {
				shape, err := jsonShape(v)
				if err != nil {
					return err
				}
				if layout == "json" {
					return json.NewEncoder(cmd.OutOrStdout()).Encode(v)
				}
				if serverErr != nil {
					return serverErr
				}
				return format.Values(cmd.OutOrStdout(), layout, []any{shape})
			}
			printVersion(cmd.OutOrStdout(), v)
			return serverErr
		}),
	}
	c.Flags().StringVarP(&layout, "format", "f", "", "json or a template")
	return c
}

func (a *app) serverVersion(cmd *cobra.Command, v *versionInfo) error {
	e, err := a.connect()
	if err != nil {
		return err
	}
	defer e.Close()
	r, err := e.system.Version(cmd.Context(), &apiv1.SystemServiceVersionRequest{})
	if err != nil {
		return err
	}
	v.Server = &serverInfo{Version: r.GetVersion(), GitCommit: r.GetCommit(), GoVersion: r.GetGoVersion(), APIVersion: r.GetApiVersion(),
		Os: r.GetOs(), Arch: r.GetArch(), KernelVersion: r.GetKernel(), Daemons: daemons(r.GetDaemons())}
	return nil
}

func daemons(list []*apiv1.DaemonInfo) []daemonInfo {
	var out []daemonInfo
	for _, d := range list {
		out = append(out, daemonInfo{d.GetName(), d.GetVersion(), d.GetStatus(), d.GetPid(), d.GetUid(), d.GetUptime().AsDuration().Round(time.Second).String()})
	}
	return out
}

func printVersion(w io.Writer, v versionInfo) {
	out := bufio.NewWriter(w)
	defer out.Flush()
	tw := tabwriter.NewWriter(out, 8, 1, 2, ' ', 0)
	defer tw.Flush()
	fmt.Fprintf(tw, "Client:\n Version:\t%s\n Git commit:\t%s\n Go version:\t%s\n OS/Arch:\t%s/%s\n", v.Client.Version, v.Client.GitCommit, v.Client.GoVersion, v.Client.Os, v.Client.Arch)
	if s := v.Server; s != nil {
		fmt.Fprintf(tw, "\nServer:\n Version:\t%s\n API version:\t%s\n Git commit:\t%s\n Go version:\t%s\n OS/Arch:\t%s/%s\n Kernel:\t%s\n", s.Version, s.APIVersion, s.GitCommit, s.GoVersion, s.Os, s.Arch, s.KernelVersion)
		for _, d := range s.Daemons {
			fmt.Fprintf(tw, " %s:\t%s, %s, pid %d, uid %d, up %s\n", d.Name, d.Version, d.Status, d.Pid, d.Uid, d.Uptime)
		}
	}
}

func (a *app) infoCommand() *cobra.Command {
	var layout string
	c := &cobra.Command{
		Use: "info [OPTIONS]", Short: "Show the state of the engine and its host", Args: needArgs(0, 0), Example: "  berth info -f '{{.ContainersRunning}}'",
		RunE: plain(func(cmd *cobra.Command, _ []string) error {
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			r, err := e.system.Info(cmd.Context(), &apiv1.SystemServiceInfoRequest{})
			if err != nil {
				return err
			}
			i := newInfo(r)
			if layout == "json" {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(i)
			}
			if layout != "" {
				shape, err := jsonShape(i)
				if err != nil {
					return err
				}
				return format.Values(cmd.OutOrStdout(), layout, []any{shape})
			}
			printInfo(cmd.OutOrStdout(), i)
			for _, w := range r.GetWarnings() {
				fmt.Fprintln(cmd.ErrOrStderr(), "warning:", w)
			}
			return nil
		}),
	}
	c.Flags().StringVarP(&layout, "format", "f", "", "json or a template")
	return c
}

type info struct {
	ID, Name, ServerVersion                                            string
	Containers, ContainersRunning, ContainersPaused, ContainersStopped int32
	Images                                                             int32
	Driver, CgroupDriver, CgroupLayout, KernelVersion, OSType, Arch    string
	NCPU                                                               int32
	MemTotal                                                           int64
	Root                                                               string `json:"DockerRootDir"`
	Run                                                                string
	SecurityOptions, Warnings                                          []string
	Daemons                                                            []daemonInfo
	facts                                                              map[string]string
}

func newInfo(r *apiv1.SystemServiceInfoResponse) info {
	i := info{
		ID: r.GetId(), Name: r.GetHostname(), ServerVersion: r.GetVersion(), Containers: r.GetContainers(), ContainersRunning: r.GetContainersRunning(),
		ContainersPaused: r.GetContainersPaused(), ContainersStopped: r.GetContainersStopped(), Images: r.GetImages(), Driver: r.GetGraphDriver(),
		CgroupDriver: "cgroupfs", CgroupLayout: r.GetCgroupLayout(), KernelVersion: r.GetKernel(), OSType: r.GetOs(), Arch: r.GetArch(), NCPU: r.GetCpus(),
		MemTotal: r.GetMemoryBytes(), Root: r.GetRoot(), Run: r.GetRun(), SecurityOptions: r.GetSecurity(), Warnings: r.GetWarnings(),
		Daemons: daemons(r.GetDaemons()), facts: map[string]string{},
	}
	for _, d := range r.GetDaemons() {
		for k, v := range d.GetFacts() {
			i.facts[d.GetName()+" "+k] = v
		}
	}
	return i
}

func printInfo(w io.Writer, i info) {
	tw := tabwriter.NewWriter(w, 8, 1, 2, ' ', 0)
	defer tw.Flush()
	fmt.Fprintf(tw, "Containers:\t%d (%d running, %d paused, %d stopped)\nImages:\t%d\nServer version:\t%s\n", i.Containers, i.ContainersRunning, i.ContainersPaused, i.ContainersStopped, i.Images, i.ServerVersion)
	fmt.Fprintf(tw, "Storage driver:\t%s\nCgroups:\t%s\nSecurity:\t%s\n", i.Driver, i.CgroupLayout, strings.Join(i.SecurityOptions, ", "))
	fmt.Fprintf(tw, "Host:\t%s, %s/%s, kernel %s\nCPUs:\t%d\nMemory:\t%s\nState:\t%s, %s\n", i.Name, i.OSType, i.Arch, i.KernelVersion, i.NCPU, format.BinaryBytes(i.MemTotal), i.Root, i.Run)
	for _, d := range i.Daemons {
		fmt.Fprintf(tw, "%s:\t%s, pid %d, uid %d, up %s\n", d.Name, d.Status, d.Pid, d.Uid, d.Uptime)
	}
	keys := make([]string, 0, len(i.facts))
	for k := range i.facts {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		fmt.Fprintf(tw, "%s:\t%s\n", k, i.facts[k])
	}
}

type dfRow struct {
	Type        string
	TotalCount  string `header:"TOTAL"`
	Active      string
	Size        string
	Reclaimable string
}

func (a *app) dfCommand() *cobra.Command {
	var layout string
	c := &cobra.Command{
		Use: "df [OPTIONS]", Short: "Show what uses disk space", Args: needArgs(0, 0), Example: "  berth system df",
		RunE: plain(func(cmd *cobra.Command, _ []string) error {
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			r, err := e.system.DiskUsage(cmd.Context(), &apiv1.SystemServiceDiskUsageRequest{})
			if err != nil {
				return err
			}
			var rows []dfRow
			for _, i := range r.GetItems() {
				rows = append(rows, dfRow{i.GetKind(), fmt.Sprint(i.GetTotal()), fmt.Sprint(i.GetActive()), format.Bytes(i.GetSizeBytes()), format.Bytes(i.GetReclaimableBytes())})
			}
			return format.Rows(cmd.OutOrStdout(), layout, []string{"Type", "TotalCount", "Active", "Size", "Reclaimable"}, rows)
		}),
	}
	c.Flags().StringVar(&layout, "format", "", "table, json, or a template")
	return c
}

func (a *app) eventsCommand() *cobra.Command {
	var since, until, layout string
	var filters []string
	c := &cobra.Command{
		Use: "events [OPTIONS]", Short: "Show what happens in the engine, as it happens", Args: needArgs(0, 0),
		Example: "  berth events --since 10m --filter type=container",
		RunE: plain(func(cmd *cobra.Command, _ []string) error {
			r := &apiv1.EventServiceWatchRequest{Filters: filters}
			var err error
			if r.Since, err = timeFlag("--since", since); err != nil {
				return err
			}
			if r.Until, err = timeFlag("--until", until); err != nil {
				return err
			}
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			stream, err := e.events.Watch(cmd.Context(), r)
			if err != nil {
				return err
			}
			for {
				m, err := stream.Recv()
				if errors.Is(err, io.EOF) {
					return nil
				}
				if err != nil {
					return err
				}
				if err := printEvent(cmd.OutOrStdout(), layout, m.GetEvent()); err != nil {
					return err
				}
			}
		}),
	}
	c.Flags().StringVar(&since, "since", "", "from this time or this long ago")
	c.Flags().StringVar(&until, "until", "", "up to this time")
	c.Flags().StringVar(&layout, "format", "", "json or a template")
	flags.Array(c.Flags(), &filters, "filter", "f", "only those that match: type=, event=, container=, image=, network=, label=")
	return c
}

type eventActor struct {
	ID         string
	Attributes map[string]string
}

type eventRow struct {
	Type     string
	Action   string
	ID       string `json:"id"`
	From     string `json:"from,omitempty"`
	Actor    eventActor
	Time     int64  `json:"time"`
	TimeNano int64  `json:"timeNano"`
	Daemon   string `json:"daemon,omitempty"`
}

func printEvent(w io.Writer, layout string, e *apiv1.Event) error {
	t := e.GetTime().AsTime()
	if layout == "" {
		var attrs []string
		for k, v := range e.GetAttributes() {
			attrs = append(attrs, k+"="+v)
		}
		sort.Strings(attrs)
		_, err := fmt.Fprintf(w, "%s %s %s %s (%s)\n", t.Local().Format("2006-01-02T15:04:05.000000000Z07:00"), e.GetType(), e.GetAction(), e.GetId(), strings.Join(attrs, ", "))
		return err
	}
	return format.Rows(w, layout, nil, []eventRow{{
		Type: e.GetType(), Action: e.GetAction(), ID: e.GetId(), From: e.GetAttributes()["image"],
		Actor: eventActor{e.GetId(), e.GetAttributes()}, Time: t.Unix(), TimeNano: t.UnixNano(), Daemon: e.GetDaemon(),
	}})
}

// writeColumns writes lines of cells as a table without a template.
func writeColumns(w io.Writer, lines [][]string) error {
	out := bufio.NewWriter(w)
	tw := tabwriter.NewWriter(out, 8, 1, 3, ' ', 0)
	for _, l := range lines {
		fmt.Fprintln(tw, strings.TrimRight(strings.Join(l, "\t"), "\t"))
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	return out.Flush()
}
