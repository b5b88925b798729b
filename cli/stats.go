package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"berth/cli/apiv1"
	"berth/cli/format"
	"berth/cli/term"
)

type statsRow struct {
	ID        string `header:"CONTAINER ID"`
	Container string
	Name      string
	CPUPerc   string `header:"CPU %"`
	MemUsage  string `header:"MEM USAGE / LIMIT"`
	MemPerc   string `header:"MEM %"`
	NetIO     string `header:"NET I/O"`
	BlockIO   string `header:"BLOCK I/O"`
	PIDs      string
}

func (a *app) statsCommand() *cobra.Command {
	var all, noStream, noTrunc bool
	var layout string
	c := &cobra.Command{
		Use: "stats [OPTIONS] [CONTAINER...]", Short: "Show what containers use",
		Example: "  berth stats --no-stream web",
		RunE: plain(func(cmd *cobra.Command, args []string) error {
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			stream, err := e.containers.Stats(cmd.Context(), &apiv1.StatsRequest{Containers: args, All: all, Stream: !noStream})
			if err != nil {
				return err
			}
			redraw := !noStream && term.IsTerminal(os.Stdout) && layout == ""
			for {
				m, err := stream.Recv()
				if errors.Is(err, io.EOF) {
					return nil
				}
				if err != nil {
					return err
				}
				var out strings.Builder
				if redraw {
					out.WriteString("\x1b[H\x1b[2J")
				}
				rows := make([]statsRow, 0, len(m.GetStats()))
				for _, s := range m.GetStats() {
					rows = append(rows, newStatsRow(s, noTrunc))
				}
				if err := format.Rows(&out, layout, []string{"ID", "Name", "CPUPerc", "MemUsage", "MemPerc", "NetIO", "BlockIO", "PIDs"}, rows); err != nil {
					return err
				}
				fmt.Fprint(cmd.OutOrStdout(), out.String())
			}
		}),
	}
	f := c.Flags()
	f.BoolVarP(&all, "all", "a", false, "also those that do not run")
	f.BoolVar(&noStream, "no-stream", false, "once")
	f.BoolVar(&noTrunc, "no-trunc", false, "do not shorten")
	f.StringVar(&layout, "format", "", "table, json, or a template")
	return c
}

func newStatsRow(s *apiv1.ContainerStats, noTrunc bool) statsRow {
	percent := 0.0
	if s.GetMemoryLimitBytes() > 0 {
		percent = 100 * float64(s.GetMemoryBytes()) / float64(s.GetMemoryLimitBytes())
	}
	return statsRow{
		ID: shortID(s.GetId(), noTrunc), Container: shortID(s.GetId(), noTrunc), Name: s.GetName(),
		CPUPerc:  fmt.Sprintf("%.2f%%", s.GetCpuPercent()),
		MemUsage: format.BinaryBytes(s.GetMemoryBytes()) + " / " + format.BinaryBytes(s.GetMemoryLimitBytes()),
		MemPerc:  fmt.Sprintf("%.2f%%", percent),
		NetIO:    format.Bytes(s.GetNetRxBytes()) + " / " + format.Bytes(s.GetNetTxBytes()),
		BlockIO:  format.Bytes(s.GetBlockReadBytes()) + " / " + format.Bytes(s.GetBlockWriteBytes()),
		PIDs:     fmt.Sprint(s.GetPids()),
	}
}
