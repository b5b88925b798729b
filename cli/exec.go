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
	"berth/cli/term"
)

func (a *app) execCommand() *cobra.Command {
	o := &apiv1.ExecRequest_Open{}
	var env, envFiles []string
	var interactive bool
	var detachKeys string
	c := &cobra.Command{
		Use: "exec [OPTIONS] CONTAINER COMMAND [ARG...]", Short: "Run a further command in a running container",
		Example: "  berth exec -it web sh\n  berth exec -u www-data web id", Args: needArgs(2, -1),
	}
	f := c.Flags()
	f.SetInterspersed(false)
	f.BoolVarP(&o.Detach, "detach", "d", false, "run in the background")
	f.BoolVarP(&interactive, "interactive", "i", false, "pass stdin on")
	f.BoolVarP(&o.Tty, "tty", "t", false, "give the command a terminal")
	flags.Array(f, &env, "env", "e", "set environment variable KEY=VALUE")
	flags.Array(f, &envFiles, "env-file", "", "read environment variables from a file")
	f.StringVarP(&o.User, "user", "u", "", "user[:group] inside the container")
	f.StringVarP(&o.WorkingDir, "workdir", "w", "", "working directory inside the container")
	f.BoolVar(&o.Privileged, "privileged", false, "with all capabilities")
	f.StringVar(&detachKeys, "detach-keys", term.DefaultDetachKeys, "keys that leave the command running")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		var err error
		if o.Env, err = flags.Env(env, envFiles); err != nil {
			return usagef("see `berth exec --help`", "%v", err)
		}
		keys, err := term.ParseKeys(detachKeys)
		if err != nil {
			return usagef("", "%v", err)
		}
		if o.Tty && interactive && !o.Detach && !term.IsTerminal(os.Stdin) {
			return failed(usagef("leave out -t, or run it from a terminal", "stdin is not a terminal"))
		}
		o.Container, o.Args = args[0], args[1:]
		if !o.Detach {
			o.Attach = &apiv1.AttachOptions{Stdin: interactive, Stdout: true, Stderr: true}
		}
		if o.Tty {
			o.Env = append([]string{"TERM=" + envOr("TERM", "xterm")}, o.Env...)
			rows, columns := term.Size(os.Stdout)
			o.TerminalSize = &apiv1.TerminalSize{Rows: rows, Columns: columns}
		}
		return execExit(a.execIn(cmd.Context(), o, keys))
	}
	return c
}

// execExit: as with Docker, the engine's refusal of an exec is exit code 1, save 126 and 127.
func execExit(err error) error {
	if err == nil {
		return nil
	}
	if _, _, code := explain(err); code == exitEngine {
		return failed(err)
	}
	return err
}

func (a *app) execIn(ctx context.Context, o *apiv1.ExecRequest_Open, keys []byte) error {
	e, err := a.connect()
	if err != nil {
		return err
	}
	defer e.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := e.containers.Exec(ctx)
	if err != nil {
		return err
	}
	if err := stream.Send(&apiv1.ExecRequest{Message: &apiv1.ExecRequest_Open_{Open: o}}); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	s := newSession(execSender{stream}, o.GetTty(), o.GetAttach().GetStdin(), keys)
	defer s.close()
	if !o.GetDetach() {
		s.catchSignals()
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			return s.end(err)
		}
		switch m := m.Message.(type) {
		case *apiv1.ExecResponse_Started_:
			if o.GetDetach() {
				fmt.Println(m.Started.GetExecId())
				return nil
			}
			if err := s.begin(); err != nil {
				return err
			}
		case *apiv1.ExecResponse_Output:
			s.output(m.Output)
		case *apiv1.ExecResponse_Exited:
			return s.exited(m.Exited)
		}
	}
}

type execSender struct {
	s apiv1.ContainerService_ExecClient
}

func (r execSender) stdin(b []byte) error {
	return r.s.Send(&apiv1.ExecRequest{Message: &apiv1.ExecRequest_Stdin{Stdin: b}})
}
func (r execSender) resize(t *apiv1.TerminalSize) error {
	return r.s.Send(&apiv1.ExecRequest{Message: &apiv1.ExecRequest_Resize{Resize: t}})
}
func (r execSender) signal(name string) error {
	return r.s.Send(&apiv1.ExecRequest{Message: &apiv1.ExecRequest_Signal{Signal: name}})
}
