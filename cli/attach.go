package main

import (
	"context"
	"errors"
	"io"

	"github.com/spf13/cobra"

	"berth/cli/apiv1"
	"berth/cli/term"
)

type attachChoice struct {
	stdin, sigProxy bool
	keys            string
	start           bool // start it once attached
}

func (a *app) attachCommand() *cobra.Command {
	var noStdin, sigProxy bool
	var keys string
	c := &cobra.Command{
		Use: "attach [OPTIONS] CONTAINER", Short: "Attach this terminal to a running container", Args: needArgs(1, 1),
		Example: "  berth attach web      (ctrl-p ctrl-q leaves it running)",
		RunE: func(cmd *cobra.Command, args []string) error {
			e, err := a.connect()
			if err != nil {
				return failed(err)
			}
			defer e.Close()
			return a.attachTo(cmd.Context(), e, args[0], attachChoice{stdin: !noStdin, sigProxy: sigProxy, keys: keys})
		},
	}
	c.Flags().BoolVar(&noStdin, "no-stdin", false, "do not attach stdin")
	c.Flags().BoolVar(&sigProxy, "sig-proxy", true, "pass signals on to the process")
	c.Flags().StringVar(&keys, "detach-keys", term.DefaultDetachKeys, "keys that leave the container running")
	return c
}

// attachTo connects to a container's stdio, starts it if asked, and stays until it exits.
func (a *app) attachTo(ctx context.Context, e *engine, name string, o attachChoice) error {
	keys, err := term.ParseKeys(o.keys)
	if err != nil {
		return usagef("", "%v", err)
	}
	info, err := e.containers.Inspect(ctx, &apiv1.InspectRequest{Container: name})
	if err != nil {
		return failed(err)
	}
	spec := info.GetContainer().GetSpec()
	if !o.start && info.GetContainer().GetState() != apiv1.ContainerState_CONTAINER_STATE_RUNNING {
		return failed(usagef("start it with `berth start -a "+name+"`", "container %s does not run", name))
	}
	stdin := o.stdin && spec.GetOpenStdin()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := e.containers.Attach(ctx)
	if err != nil {
		return failed(err)
	}
	open := &apiv1.AttachRequest_Open{Container: info.GetContainer().GetId(), AwaitStart: o.start,
		Attach: &apiv1.AttachOptions{Stdin: stdin, Stdout: true, Stderr: true}}
	if err := stream.Send(&apiv1.AttachRequest{Message: &apiv1.AttachRequest_Open_{Open: open}}); err != nil && !errors.Is(err, io.EOF) {
		return failed(err)
	}
	s := newSession(attachSender{stream}, spec.GetTty(), stdin, keys)
	defer s.close()
	if o.sigProxy {
		s.catchSignals()
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			return failed(s.end(err))
		}
		switch {
		case m.GetAttached():
			if o.start {
				if _, err := e.containers.Start(ctx, &apiv1.StartRequest{Container: open.Container}); err != nil {
					return failed(err)
				}
			}
			if err := s.begin(); err != nil {
				return err
			}
		case m.GetOutput() != nil:
			s.output(m.GetOutput())
		case m.GetExited() != nil:
			return s.exited(m.GetExited())
		}
	}
}

type attachSender struct {
	s apiv1.ContainerService_AttachClient
}

func (r attachSender) stdin(b []byte) error {
	return r.s.Send(&apiv1.AttachRequest{Message: &apiv1.AttachRequest_Stdin{Stdin: b}})
}
func (r attachSender) resize(t *apiv1.TerminalSize) error {
	return r.s.Send(&apiv1.AttachRequest{Message: &apiv1.AttachRequest_Resize{Resize: t}})
}
func (r attachSender) signal(name string) error {
	return r.s.Send(&apiv1.AttachRequest{Message: &apiv1.AttachRequest_Signal{Signal: name}})
}
