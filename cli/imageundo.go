package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"berth/cli/apiv1"
	"berth/cli/format"
)

type pastRow struct {
	ID    string `header:"IMAGE ID"`
	Since string
	Until string
}

func (a *app) imageUndoCommand() *cobra.Command {
	var list bool
	var layout string
	c := &cobra.Command{
		Use: "undo [OPTIONS] NAME[:TAG]", Short: "Give a name back to the image it pointed to before", Args: needArgs(1, 1),
		Example: "  berth image undo --list web:latest\n  berth image undo web:latest",
		RunE: plain(func(cmd *cobra.Command, args []string) error {
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			r, err := e.images.Undo(cmd.Context(), &apiv1.ImageServiceUndoRequest{Reference: args[0], DryRun: list})
			if err != nil {
				return err
			}
			if !list {
				fmt.Fprintf(cmd.OutOrStdout(), "%s is %s again\n", args[0], format.ShortID(r.GetImageId()))
				return nil
			}
			rows := []pastRow{}
			for _, p := range r.GetPast() {
				rows = append(rows, pastRow{format.ShortID(p.GetImageId()), format.Ago(p.GetSince().AsTime()), format.Ago(p.GetUntil().AsTime())})
			}
			return format.Rows(cmd.OutOrStdout(), layout, []string{"ID", "Since", "Until"}, rows)
		}),
	}
	c.Flags().BoolVar(&list, "list", false, "only list the images that the name pointed to and that are here")
	c.Flags().StringVar(&layout, "format", "", "table, json, or a template")
	return c
}
