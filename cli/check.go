package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"berth/cli/format"
	"berth/libcontainer/feature"
)

// checkRow is one line of `berth check`.
type checkRow struct {
	Feature string
	Have    string
	Needed  string
	Since   string
	Detail  string
	Lost    string
	Do      string
}

func (a *app) checkCommand() *cobra.Command {
	var layout string
	var all bool
	c := &cobra.Command{
		Use: "check [OPTIONS]", Short: "Say whether this host can run the engine, and what is missing", Args: needArgs(0, 0),
		Long: `Tries each kernel feature the engine uses and says what is lost without it and what to do. Needs no daemon; as root
it can try everything. The exit code is 0 when containers can run, 1 when something they need is missing.`,
		Example: "  berth check\n  berth check --all\n  berth check --format json",
		RunE: plain(func(cmd *cobra.Command, _ []string) error {
			features := feature.Probe(a.root)
			if layout != "" {
				rows := make([]checkRow, 0, len(features))
				for _, f := range features {
					rows = append(rows, newCheckRow(f))
				}
				if err := format.Rows(cmd.OutOrStdout(), layout, []string{"Feature", "Have", "Needed", "Since", "Detail"}, rows); err != nil {
					return err
				}
			} else {
				printCheck(cmd.OutOrStdout(), features, all)
			}
			for _, f := range features {
				if f.Needed && f.Have == feature.No {
					return exitCode(1)
				}
			}
			return nil
		}),
	}
	c.Flags().StringVar(&layout, "format", "", "table, json, or a template")
	c.Flags().BoolVarP(&all, "all", "a", false, "also list what is there")
	return c
}

func newCheckRow(f feature.Feature) checkRow {
	needed := "optional"
	if f.Needed {
		needed = "needed"
	}
	return checkRow{f.Name, f.Have.String(), needed, f.Since, f.Detail, f.Lost, f.Do}
}

// printCheck writes the verdict first, then what is missing with its consequence and its remedy.
func printCheck(w io.Writer, features []feature.Feature, all bool) {
	_, kernel, _ := feature.Kernel()
	var have, missing, unknown, fatal int
	for _, f := range features {
		switch {
		case f.Have == feature.Yes:
			have++
		case f.Have == feature.Unknown:
			unknown++
		case f.Needed:
			fatal++
		default:
			missing++
		}
	}
	verdict := "This host can run Berth."
	if fatal > 0 {
		verdict = "This host cannot run Berth."
	}
	fmt.Fprintf(w, "%s\nLinux %s on %s: %d features there, %d missing that are needed, %d optional ones missing, %d unknown.\n",
		verdict, kernel, runtime.GOARCH, have, fatal, missing, unknown)
	if os.Geteuid() != 0 {
		fmt.Fprintln(w, "Not everything can be tried without root: sudo berth check.")
	}
	for _, part := range []struct {
		title string
		want  func(feature.Feature) bool
		full  bool
	}{
		{"Missing, and needed", func(f feature.Feature) bool { return f.Have == feature.No && f.Needed }, true},
		{"Missing", func(f feature.Feature) bool { return f.Have == feature.No && !f.Needed }, true},
		{"Unknown", func(f feature.Feature) bool { return f.Have == feature.Unknown }, true},
		{"There", func(f feature.Feature) bool { return f.Have == feature.Yes && all }, false},
	} {
		titled := false
		for _, f := range features {
			if !part.want(f) {
				continue
			}
			if !titled {
				fmt.Fprintf(w, "\n%s:\n", part.title)
				titled = true
			}
			printFeature(w, f, part.full)
		}
	}
	if !all {
		fmt.Fprintln(w, "\n`berth check --all` lists what is there too.")
	}
}

func printFeature(w io.Writer, f feature.Feature, full bool) {
	var about []string
	if f.Since != "" {
		about = append(about, "since "+f.Since)
	}
	if f.Detail != "" {
		about = append(about, f.Detail)
	}
	line := "  " + f.Name
	if len(about) > 0 {
		line += " (" + strings.Join(about, "; ") + ")"
	}
	fmt.Fprintln(w, line)
	if full && f.Lost != "" {
		fmt.Fprintln(w, "      lost:", f.Lost)
	}
	if full && f.Do != "" {
		fmt.Fprintln(w, "      do:  ", f.Do)
	}
}
