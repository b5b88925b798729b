package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"berth/cli/apiv1"
	"berth/cli/flags"
	"berth/cli/progress"
)

func (a *app) createCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "create [OPTIONS] IMAGE [COMMAND] [ARG...]",
		Short:   "Create a container without starting it",
		Example: "  berth create --name web -p 8080:80 nginx && berth start web",
		Args:    needArgs(1, -1),
	}
	f := c.Flags()
	f.SetInterspersed(false)
	cf := flags.AddContainer(f)
	autoRemove := f.Bool("rm", false, "remove the container when it exits")
	cidfile := f.String("cidfile", "", "write the container's id to this file")
	c.RunE = plain(func(cmd *cobra.Command, args []string) error {
		spec, err := cf.Spec(args[0], args[1:])
		if err != nil {
			return usagef("see `berth create --help`", "%v", err)
		}
		spec.AutoRemove = *autoRemove
		spec.StdinOnce = spec.OpenStdin
		e, err := a.connect()
		if err != nil {
			return err
		}
		defer e.Close()
		stream, err := e.containers.Create(cmd.Context(), &apiv1.CreateRequest{Spec: spec, Auth: authFor(spec.Image)})
		if err != nil {
			return err
		}
		bars := progress.New(os.Stderr, cf.Quiet)
		for {
			m, err := stream.Recv()
			if err != nil {
				bars.Close()
				return err
			}
			if p := m.GetProgress(); p != nil {
				bars.Update(p)
			}
			if r := m.GetResult(); r != nil {
				bars.Close()
				for _, w := range r.GetWarnings() {
					fmt.Fprintln(cmd.ErrOrStderr(), "warning:", w)
				}
				if *cidfile != "" {
					if err := os.WriteFile(*cidfile, []byte(r.GetId()), 0o644); err != nil {
						return err
					}
				}
				fmt.Fprintln(cmd.OutOrStdout(), r.GetId())
				return nil
			}
		}
	})
	return c
}
