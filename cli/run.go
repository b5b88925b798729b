package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"berth/cli/apiv1"
	"berth/cli/flags"
	"berth/cli/progress"
	"berth/cli/stages"
	"berth/cli/term"
)

func (a *app) runCommand() *cobra.Command {
	var (
		detach         bool
		trace          stages.Wanted
		attach         []string
		cidfile        string
		sigProxy       bool
		detachKeys     string
		containerFlags *flags.Container
		autoRemove     bool
	)
	c := &cobra.Command{
		Use:   "run [OPTIONS] IMAGE [COMMAND] [ARG...]",
		Short: "Create a container from an image and run it",
		Example: `  berth run --rm -it debian bash
  berth run -d --name web -p 8080:80 --memory 256m nginx
  berth run --rm -v "$PWD":/src -w /src golang go build ./...`,
		Args: needArgs(1, -1),
	}
	f := c.Flags()
	f.SetInterspersed(false)
	containerFlags = flags.AddContainer(f)
	f.BoolVarP(&detach, "detach", "d", false, "run in the background and print the container's id")
	f.BoolVar(&autoRemove, "rm", false, "remove the container when it exits")
	flags.Slice(f, &attach, "attach", "a", "attach to stdin, stdout or stderr only")
	f.StringVar(&cidfile, "cidfile", "", "write the container's id to this file")
	f.BoolVar(&sigProxy, "sig-proxy", true, "pass signals on to the process")
	f.StringVar(&detachKeys, "detach-keys", term.DefaultDetachKeys, "keys that leave the container running")
	addTrace(f, &trace)
	c.RunE = func(cmd *cobra.Command, args []string) error {
		spec, err := containerFlags.Spec(args[0], args[1:])
		if err != nil {
			return usagef("see `berth run --help`", "%v", err)
		}
		spec.AutoRemove = autoRemove
		if spec.AutoRemove && spec.Restart != nil {
			return usagef("", "--restart and --rm do not go together")
		}
		keys, err := term.ParseKeys(detachKeys)
		if err != nil {
			return usagef("", "%v", err)
		}
		streams, err := attachOptions(spec, attach, detach)
		if err != nil {
			return err
		}
		if spec.Tty && streams.Stdin && !term.IsTerminal(os.Stdin) {
			return usagef("leave out -t, or run it from a terminal", "stdin is not a terminal")
		}
		if cidfile != "" {
			if _, err := os.Stat(cidfile); err == nil {
				return usagef("remove it or name another", "container id file %s exists", cidfile)
			}
		}
		return a.runContainer(cmd.Context(), &runOptions{
			spec: spec, attach: streams, detach: detach, quiet: containerFlags.Quiet, cidfile: cidfile,
			sigProxy: sigProxy, keys: keys, trace: trace,
		})
	}
	return c
}

type runOptions struct {
	spec          *apiv1.ContainerSpec
	attach        *apiv1.AttachOptions
	detach, quiet bool
	sigProxy      bool
	trace         stages.Wanted
	cidfile       string
	keys          []byte
}

func addTrace(f *pflag.FlagSet, trace *stages.Wanted) {
	f.Var(trace, "trace", "show how long each stage of the start took; twice, or =full: every step")
	f.Lookup("trace").NoOptDefVal = "stages"
}

// attachOptions decides, as Docker does, which streams the client takes.
func attachOptions(spec *apiv1.ContainerSpec, want []string, detach bool) (*apiv1.AttachOptions, error) {
	o := &apiv1.AttachOptions{}
	for _, s := range want {
		switch strings.ToLower(s) {
		case "stdin":
			o.Stdin, spec.OpenStdin = true, true
		case "stdout":
			o.Stdout = true
		case "stderr":
			o.Stderr = true
		default:
			return nil, usagef("", "--attach: %q is not stdin, stdout or stderr", s)
		}
	}
	if detach {
		if len(want) > 0 {
			return nil, usagef("", "--attach and --detach do not go together")
		}
		return o, nil
	}
	if len(want) == 0 {
		o.Stdout, o.Stderr, o.Stdin = true, true, spec.OpenStdin
	}
	if spec.Tty {
		spec.Env = append([]string{"TERM=" + envOr("TERM", "xterm")}, spec.Env...)
		rows, columns := term.Size(os.Stdout)
		spec.TerminalSize = &apiv1.TerminalSize{Rows: rows, Columns: columns}
	}
	spec.StdinOnce = o.Stdin
	return o, nil
}

// runContainer is one Run call: pull if needed, create, start, and stay attached.
func (a *app) runContainer(ctx context.Context, o *runOptions) error {
	e, err := a.connect()
	if err != nil {
		return err
	}
	defer e.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := e.containers.Run(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	show := func(steps []*apiv1.TraceStep) {
		if o.trace != stages.Nothing {
			stages.Print(os.Stderr, stages.Whole(steps, time.Since(began)), o.trace == stages.Steps)
		}
	}
	open := &apiv1.RunRequest_Open{Spec: o.spec, Detach: o.detach, Attach: o.attach, Auth: authFor(o.spec.Image), Trace: o.trace != stages.Nothing}
	if err := stream.Send(&apiv1.RunRequest{Message: &apiv1.RunRequest_Open_{Open: open}}); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	s := newSession(runSender{stream}, o.spec.Tty, o.attach.GetStdin(), o.keys)
	defer s.close()
	if o.detach {
		stream.CloseSend()
	} else if o.sigProxy {
		s.catchSignals()
	}
	bars := progress.New(os.Stderr, o.quiet)
	defer bars.Close()
	for {
		r, err := stream.Recv()
		if err != nil {
			return s.end(err)
		}
		switch m := r.Message.(type) {
		case *apiv1.RunResponse_Progress:
			bars.Update(m.Progress)
		case *apiv1.RunResponse_Created_:
			bars.Close()
			bars = progress.New(os.Stderr, true)
			if err := created(o, m.Created); err != nil {
				return err
			}
		case *apiv1.RunResponse_Started_:
			if o.detach {
				show(m.Started.GetTrace())
				return nil
			}
			if err := s.begin(); err != nil {
				return err
			}
		case *apiv1.RunResponse_Output:
			s.output(m.Output)
		case *apiv1.RunResponse_Exited:
			show(r.GetTrace())
			return s.exited(m.Exited)
		}
	}
}

// created prints warnings and, for a detached container, its id.
func created(o *runOptions, c *apiv1.RunResponse_Created) error {
	for _, w := range c.GetWarnings() {
		fmt.Fprintln(os.Stderr, "warning:", w)
	}
	if o.cidfile != "" {
		if err := os.WriteFile(o.cidfile, []byte(c.GetId()), 0o644); err != nil {
			return usagef("", "write container id file: %v", err)
		}
	}
	if o.detach {
		fmt.Println(c.GetId())
	}
	return nil
}

type runSender struct {
	s apiv1.ContainerService_RunClient
}

func (r runSender) stdin(b []byte) error {
	return r.s.Send(&apiv1.RunRequest{Message: &apiv1.RunRequest_Stdin{Stdin: b}})
}
func (r runSender) resize(t *apiv1.TerminalSize) error {
	return r.s.Send(&apiv1.RunRequest{Message: &apiv1.RunRequest_Resize{Resize: t}})
}
func (r runSender) signal(name string) error {
	return r.s.Send(&apiv1.RunRequest{Message: &apiv1.RunRequest_Signal{Signal: name}})
}
