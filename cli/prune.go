package main

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"berth/cli/format"
)

// confirm asks on the terminal; anything but yes means no.
func confirm(cmd *cobra.Command, warning string) bool {
	fmt.Fprintf(cmd.ErrOrStderr(), "%s Go on? [y/N] ", warning)
	line, _ := bufio.NewReader(os.Stdin).ReadString('\n')
	answer := strings.ToLower(strings.TrimSpace(line))
	return answer == "y" || answer == "yes"
}

func printPruned(cmd *cobra.Command, what string, names []string, bytes int64) {
	out := cmd.OutOrStdout()
	if len(names) > 0 {
		fmt.Fprintf(out, "Deleted %s:\n", what)
		for _, n := range names {
			fmt.Fprintln(out, n)
		}
		fmt.Fprintln(out)
	}
	fmt.Fprintln(out, "Total reclaimed space:", format.Bytes(bytes))
}
