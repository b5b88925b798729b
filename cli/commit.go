package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"berth/cli/apiv1"
	"berth/cli/flags"
	"berth/cli/progress"
	"berth/cli/term"
)

func (a *app) commitCommand() *cobra.Command {
	req := &apiv1.CommitRequest{}
	var pause bool
	c := &cobra.Command{
		Use: "commit [OPTIONS] CONTAINER [NAME[:TAG]]", Short: "Make an image of what a container changed", Args: needArgs(1, 2),
		Example: "  berth commit -m 'with curl' -c 'CMD [\"curl\"]' box box:curl",
		RunE: plain(func(cmd *cobra.Command, args []string) error {
			req.Container, req.NoPause = args[0], !pause
			if len(args) == 2 {
				req.Reference = args[1]
			}
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			ctx, cancel := context.WithCancel(cmd.Context())
			defer cancel()
			stream, err := e.containers.Commit(ctx, req)
			if err != nil {
				return err
			}
			bars := progress.New(os.Stderr, !term.IsTerminal(os.Stderr))
			defer bars.Close()
			for {
				m, err := stream.Recv()
				if err != nil {
					return err
				}
				if p := m.GetProgress(); p != nil {
					bars.Update(p)
				}
				if r := m.GetResult(); r != nil {
					fmt.Fprintln(cmd.OutOrStdout(), r.GetImageId())
					return nil
				}
			}
		}),
	}
	f := c.Flags()
	f.StringVarP(&req.Author, "author", "a", "", "author, such as 'Name <mail>'")
	flags.Array(f, &req.Changes, "change", "c", "Dockerfile instruction to apply, such as 'CMD [\"/bin/sh\"]'")
	f.StringVarP(&req.Message, "message", "m", "", "comment for the history")
	f.BoolVarP(&pause, "pause", "p", true, "pause the container meanwhile")
	return c
}

func (a *app) exportCommand() *cobra.Command {
	var output string
	c := &cobra.Command{
		Use: "export [OPTIONS] CONTAINER", Short: "Write a container's files into a tar archive", Args: needArgs(1, 1),
		Example: "  berth export -o box.tar box\n  berth export box | tar -t",
		RunE: plain(func(cmd *cobra.Command, args []string) error {
			if output == "" && term.IsTerminal(os.Stdout) {
				return usagef("give a file with -o, or redirect the output", "an archive is not written to a terminal")
			}
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			ctx, cancel := context.WithCancel(cmd.Context())
			defer cancel()
			stream, err := e.containers.Export(ctx, &apiv1.ExportRequest{Container: args[0]})
			if err != nil {
				return err
			}
			return writeOutput(output, func(w io.Writer) error {
				for {
					m, err := stream.Recv()
					if errors.Is(err, io.EOF) {
						return nil
					}
					if err != nil {
						return err
					}
					if _, err := w.Write(m.GetData()); err != nil {
						return err
					}
				}
			})
		}),
	}
	c.Flags().StringVarP(&output, "output", "o", "", "file to write to instead of standard output")
	return c
}
