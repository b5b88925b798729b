package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"berth/cli/rpc"
)

// Exit codes, as Docker documents them.
const (
	exitEngine        = 125 // the engine, or this command line, refused
	exitNotExecutable = 126
	exitNotFound      = 127
)

// exitCode ends the program quietly with a code: the container's own status.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// userError is one line for the user and, when there is one, the next step.
type userError struct {
	text string
	hint string
	code int // 0: the command's usual one
}

func (e *userError) Error() string { return e.text }

func usagef(hint, format string, args ...any) error {
	return &userError{text: fmt.Sprintf(format, args...), hint: hint}
}

// failed marks an error of a command that runs nothing inside a container: exit code 1, as Docker does.
func failed(err error) error {
	var u *userError
	if err == nil || errors.As(err, &u) && u.code != 0 {
		return err
	}
	var x exitCode
	if errors.As(err, &x) {
		return err
	}
	text, hint, _ := explain(err)
	return &userError{text: text, hint: hint, code: 1}
}

// plain wraps a command so that its failures exit with 1.
func plain(f func(cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error { return failed(f(cmd, args)) }
}

// report prints an error in the one form all commands share and returns the exit code.
func report(w io.Writer, err error) int {
	var x exitCode
	if errors.As(err, &x) {
		return int(x)
	}
	text, hint, code := explain(err)
	fmt.Fprintf(w, "error: %s\n", oneLine(text))
	if hint != "" {
		fmt.Fprintf(w, "hint: %s\n", oneLine(hint))
	}
	return code
}

// nextStep is the hint for an error of the engine that brought none, by its reason. The engine speaks to any client;
// these name commands of this one.
var nextStep = map[string]string{
	"ADDRESS_IN_USE":         "choose another --ip, or leave it out",
	"ADDRESS_NOT_USABLE":     "`berth network inspect NAME` shows the subnet",
	"COMMAND_NOT_EXECUTABLE": "it must be a file with execute permission, of this machine's architecture",
	"COMMAND_NOT_FOUND":      "check its spelling; `berth run -it IMAGE sh` lets you look into the image",
	"CONTAINER_NOT_FOUND":    "`berth ps -a` lists the containers",
	"CONTAINER_NOT_RUNNING":  "start it with `berth start NAME`",
	"CONTAINER_RUNNING":      "stop it first, or remove it with `berth rm -f NAME`",
	"IMAGE_NOT_FOUND":        "`berth images` lists the images here, `berth pull NAME` gets one",
	"JOB_NOT_FOUND":          "`berth jobs` lists the jobs",
	"NETWORK_EXISTS":         "`berth network ls` lists the networks; choose another name",
	"NETWORK_NOT_FOUND":      "`berth network ls` lists the networks, `berth network create NAME` makes one",
	"PORT_IN_USE":            "stop what uses it, or publish another: -p HOST_PORT:CONTAINER_PORT",
	"VOLUME_NOT_FOUND":       "`berth volume ls` lists the volumes",
}

// explain takes an error apart into sentence, hint and exit code.
func explain(err error) (text, hint string, code int) {
	var u *userError
	if errors.As(err, &u) {
		code = u.code
		if code == 0 {
			code = exitEngine
		}
		return u.text, u.hint, code
	}
	if errors.Is(err, context.Canceled) {
		return "cancelled", "", 130
	}
	var s *rpc.Status
	if !errors.As(err, &s) {
		return err.Error(), "", exitEngine
	}
	if text, hint, ok := unreachable(s); ok {
		return text, hint, exitEngine
	}
	text, hint, code = s.Message, s.Metadata["hint"], exitEngine
	switch s.Reason {
	case "COMMAND_NOT_FOUND":
		code = exitNotFound
	case "COMMAND_NOT_EXECUTABLE":
		code = exitNotExecutable
	}
	if hint == "" {
		hint = nextStep[s.Reason]
	}
	if hint == "" && strings.Contains(text, syscall.ENOSPC.Error()) {
		hint = "make room on the disk of the engine's state directory: `berth system df`, `berth image prune`"
	}
	if s.Code == rpc.Unimplemented && hint == "" {
		hint = "this version of the engine does not have it; `berth version` shows client and daemons"
	}
	if s.Code == rpc.Canceled {
		code = 130
	}
	return text, hint, code
}

func oneLine(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}

func flagError(cmd *cobra.Command, err error) error {
	return usagef(fmt.Sprintf("see `%s --help`", cmd.CommandPath()), "%v", err)
}

func unknownCommand(cmd *cobra.Command, name string) error {
	hint := fmt.Sprintf("see `%s --help`", cmd.CommandPath())
	if s := cmd.SuggestionsFor(name); len(s) > 0 {
		hint = "did you mean " + strings.Join(s, " or ") + "?"
	}
	return usagef(hint, "%q is not a command of %s", name, cmd.CommandPath())
}

// needArgs checks the number of arguments; most < 0 means any number.
func needArgs(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) >= least && (most < 0 || len(args) <= most) {
			return nil
		}
		want := fmt.Sprintf("%d arguments", least)
		switch {
		case most < 0:
			want = fmt.Sprintf("at least %d argument(s)", least)
		case least == most && least == 1:
			want = "1 argument"
		case least != most:
			want = fmt.Sprintf("%d to %d arguments", least, most)
		}
		return &userError{
			text: fmt.Sprintf("%s needs %s, got %d", cmd.CommandPath(), want, len(args)),
			hint: "usage: " + cmd.UseLine(), code: 1,
		}
	}
}

// absent is the error of a forced removal that found nothing to remove: it is told, and is no failure, as with Docker.
type absent struct{ error }

func (a *absent) Unwrap() error { return a.error }

// atOnce is how many containers one command works on at the same time.
const atOnce = 16

// each runs f for every argument, several at once, goes on past failures, and prints what f returned, or why it
// failed, in the order of the arguments.
func each(cmd *cobra.Command, args []string, f func(name string) (string, error)) error {
	type outcome struct {
		text string
		err  error
	}
	outcomes := make([]chan outcome, len(args))
	slots := make(chan struct{}, atOnce)
	for i, name := range args {
		outcomes[i] = make(chan outcome, 1)
		go func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			text, err := f(name)
			outcomes[i] <- outcome{text, err}
		}()
	}
	bad := 0
	for _, c := range outcomes {
		switch o := <-c; {
		case o.err != nil:
			report(cmd.ErrOrStderr(), o.err)
			var gone *absent
			if !errors.As(o.err, &gone) {
				bad++
			}
		case o.text != "":
			fmt.Fprintln(cmd.OutOrStdout(), o.text)
		}
	}
	if bad > 0 {
		return exitCode(1)
	}
	return nil
}
