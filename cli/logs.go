package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"berth/cli/apiv1"
	"berth/cli/wire"
)

func (a *app) logsCommand() *cobra.Command {
	var follow, stamps bool
	var since, until, tail string
	c := &cobra.Command{
		Use: "logs [OPTIONS] CONTAINER", Short: "Show the output of a container", Args: needArgs(1, 1),
		Example: "  berth logs -f --tail 100 web\n  berth logs --since 10m -t web",
		RunE: plain(func(cmd *cobra.Command, args []string) error {
			r := &apiv1.LogsRequest{Container: args[0], Follow: follow, Stdout: true, Stderr: true}
			var err error
			if r.Since, err = timeFlag("--since", since); err != nil {
				return err
			}
			if r.Until, err = timeFlag("--until", until); err != nil {
				return err
			}
			if tail != "all" {
				n, err := strconv.ParseInt(tail, 10, 64)
				if err != nil || n < 0 {
					return usagef("", "--tail: %q is not a number of lines or all", tail)
				}
				r.Tail = &n
			}
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			stream, err := e.containers.Logs(cmd.Context(), r)
			if err != nil {
				return err
			}
			return copyLog(stream, stamps, follow)
		}),
	}
	f := c.Flags()
	f.BoolVarP(&follow, "follow", "f", false, "go on as more comes")
	f.BoolVarP(&stamps, "timestamps", "t", false, "with the time of each line")
	f.StringVar(&since, "since", "", "from this time (RFC 3339) or this long ago (10m)")
	f.StringVar(&until, "until", "", "up to this time, or this long ago")
	f.StringVarP(&tail, "tail", "n", "all", "the last n lines")
	return c
}

// copyLog writes a log to stdout and stderr as the container did; buffered, unless someone waits for each line.
func copyLog(stream apiv1.ContainerService_LogsClient, stamps, follow bool) error {
	out, errs := bufio.NewWriterSize(os.Stdout, 64<<10), bufio.NewWriterSize(os.Stderr, 4<<10)
	defer out.Flush()
	defer errs.Flush()
	begun := map[apiv1.OutputChunk_Stream]bool{} // inside a line whose first part was written
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		w := out
		if m.GetStream() == apiv1.OutputChunk_STREAM_STDERR {
			w = errs
		}
		if stamps && !begun[m.GetStream()] {
			fmt.Fprintf(w, "%s ", m.GetTime().AsTime().Format("2006-01-02T15:04:05.000000000Z07:00"))
		}
		_, _ = w.Write(m.GetLine())
		if begun[m.GetStream()] = m.GetPartial(); !m.GetPartial() {
			_ = w.WriteByte('\n')
		}
		if follow {
			_ = w.Flush()
		}
	}
}

// timeFlag reads a point in time: RFC 3339, a date, Unix seconds, or a duration before now.
func timeFlag(flag, s string) (*wire.Timestamp, error) {
	if s == "" {
		return nil, nil
	}
	if d, err := time.ParseDuration(s); err == nil {
		return wire.NewTimestamp(time.Now().Add(-d)), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return wire.NewTimestamp(t), nil
		}
	}
	if sec, err := strconv.ParseFloat(s, 64); err == nil && sec >= 0 && sec < 1<<40 {
		return wire.NewTimestamp(time.UnixMilli(int64(sec * 1000))), nil
	}
	return nil, usagef("", "%s: %q is not a time (2026-01-02T15:04:05Z) or a duration (10m)", flag, s)
}
