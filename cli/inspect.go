package main

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"berth/cli/apiv1"
	"berth/cli/format"
	"berth/cli/rpc"
	"berth/cli/shape"
)

// inspectCommand shows anything by name: containers first, then images, networks and volumes.
func (a *app) inspectCommand() *cobra.Command {
	var layout, kind string
	var size bool
	c := &cobra.Command{
		Use: "inspect [OPTIONS] NAME [NAME...]", Short: "Show all about containers, images, networks or volumes", Args: needArgs(1, -1),
		Example: "  berth inspect web\n  berth inspect -f '{{.State.Status}} {{.NetworkSettings.IPAddress}}' web",
	}
	c.RunE = plain(func(cmd *cobra.Command, args []string) error {
		e, err := a.connect()
		if err != nil {
			return err
		}
		defer e.Close()
		finders := map[string]finder{
			"container": func(n string) (any, error) { return inspectContainer(cmd, e, n, size) },
			"image":     func(n string) (any, error) { return inspectImage(cmd, e, n) },
			"network":   func(n string) (any, error) { return inspectNetwork(cmd, e, n) },
			"volume":    func(n string) (any, error) { return inspectVolume(cmd, e, n) },
		}
		order := []string{"container", "image", "network", "volume"}
		if kind != "" {
			if finders[kind] == nil {
				return usagef("", "--type: %q is not container, image, network or volume", kind)
			}
			order = []string{kind}
		}
		return inspectAll(cmd, args, layout, func(n string) (any, error) {
			for _, k := range order {
				v, err := finders[k](n)
				if rpc.CodeOf(err) == rpc.NotFound && len(order) > 1 {
					continue
				}
				return v, err
			}
			return nil, &userError{text: "no container, image, network or volume is called " + n, hint: "see `berth ps -a` and `berth images`", code: 1}
		})
	})
	c.Flags().StringVarP(&layout, "format", "f", "", "json or a template")
	c.Flags().StringVar(&kind, "type", "", "container, image, network or volume")
	c.Flags().BoolVarP(&size, "size", "s", false, "count the bytes of the writable layer")
	return c
}

type finder func(name string) (any, error)

// inspectAll prints what it found of args and then reports what it did not find.
func inspectAll(cmd *cobra.Command, args []string, layout string, find finder) error {
	values := []any{}
	bad := false
	for _, n := range args {
		v, err := find(n)
		if err != nil {
			report(cmd.ErrOrStderr(), err)
			bad = true
			continue
		}
		if layout != "" && layout != "json" { // a template walks the JSON's names
			if v, err = jsonShape(v); err != nil {
				return err
			}
		}
		values = append(values, v)
	}
	if err := format.Values(cmd.OutOrStdout(), layout, values); err != nil {
		return err
	}
	if bad {
		return exitCode(1)
	}
	return nil
}

func jsonShape(v any) (any, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode for the template: %w", err)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var out any
	err = d.Decode(&out)
	return out, err
}

func inspectContainer(cmd *cobra.Command, e *engine, name string, size bool) (any, error) {
	r, err := e.containers.Inspect(cmd.Context(), &apiv1.InspectRequest{Container: name, Size: size})
	if err != nil {
		return nil, err
	}
	return shape.Container(r.GetContainer(), size), nil
}

func inspectImage(cmd *cobra.Command, e *engine, name string) (any, error) {
	r, err := e.images.Inspect(cmd.Context(), &apiv1.ImageServiceInspectRequest{Image: name})
	if err != nil {
		return nil, err
	}
	return shape.Image(r.GetImage()), nil
}

func inspectNetwork(cmd *cobra.Command, e *engine, name string) (any, error) {
	r, err := e.networks.Inspect(cmd.Context(), &apiv1.NetworkServiceInspectRequest{Network: name})
	if err != nil {
		return nil, err
	}
	return shape.Network(r.GetNetwork()), nil
}

func inspectVolume(cmd *cobra.Command, e *engine, name string) (any, error) {
	r, err := e.volumes.Inspect(cmd.Context(), &apiv1.VolumeServiceInspectRequest{Volume: name})
	if err != nil {
		return nil, err
	}
	return shape.Volume(r.GetVolume()), nil
}

func (a *app) portCommand() *cobra.Command {
	return &cobra.Command{
		Use: "port CONTAINER [PORT[/PROTOCOL]]", Short: "Show where the ports of a container are published", Args: needArgs(1, 2),
		Example: "  berth port web 80",
		RunE: plain(func(cmd *cobra.Command, args []string) error {
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			r, err := e.containers.Inspect(cmd.Context(), &apiv1.InspectRequest{Container: args[0]})
			if err != nil {
				return err
			}
			found := false
			for _, ep := range r.GetContainer().GetEndpoints() {
				for _, p := range ep.GetPorts() {
					inside := fmt.Sprintf("%d/%s", p.GetContainerPort(), p.GetProtocol())
					switch {
					case len(args) == 1:
						fmt.Fprintf(cmd.OutOrStdout(), "%s -> %s\n", inside, hostAddress(p))
					case args[1] == inside || args[1] == fmt.Sprint(p.GetContainerPort()) && p.GetProtocol() == "tcp":
						fmt.Fprintln(cmd.OutOrStdout(), hostAddress(p))
						found = true
					}
				}
			}
			if len(args) == 2 && !found {
				return usagef("", "container %s publishes no port %s", args[0], args[1])
			}
			return nil
		}),
	}
}

func (a *app) topCommand() *cobra.Command {
	return &cobra.Command{
		Use: "top CONTAINER [ps OPTIONS]", Short: "Show the processes of a container", Args: needArgs(1, -1), Example: "  berth top web",
		RunE: plain(func(cmd *cobra.Command, args []string) error {
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			r, err := e.containers.Top(cmd.Context(), &apiv1.TopRequest{Container: args[0], PsArgs: args[1:]})
			if err != nil {
				return err
			}
			lines := [][]string{r.GetTitles()}
			for _, p := range r.GetProcesses() {
				lines = append(lines, p.GetFields())
			}
			return writeColumns(cmd.OutOrStdout(), lines)
		}),
	}
}

func (a *app) diffCommand() *cobra.Command {
	return &cobra.Command{
		Use: "diff CONTAINER", Short: "Show what changed in a container's files", Args: needArgs(1, 1), Example: "  berth diff web",
		RunE: plain(func(cmd *cobra.Command, args []string) error {
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			info, err := e.containers.Inspect(cmd.Context(), &apiv1.InspectRequest{Container: args[0]})
			if err != nil {
				return err
			}
			r, err := e.containers.Diff(cmd.Context(), &apiv1.DiffRequest{Container: info.GetContainer().GetId()})
			if err != nil {
				return err
			}
			letters := map[apiv1.FileChange_Kind]string{apiv1.FileChange_KIND_MODIFIED: "C", apiv1.FileChange_KIND_ADDED: "A", apiv1.FileChange_KIND_DELETED: "D"}
			for _, ch := range r.GetChanges() {
				fmt.Fprintln(cmd.OutOrStdout(), letters[ch.GetKind()], ch.GetPath())
			}
			return nil
		}),
	}
}
