package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"berth/bench/machine"
)

// command is a command line whose processes are charged to an account.
type command struct {
	args   []string
	env    []string
	charge machine.Account
}

// Placeholders in the arguments.
const (
	unique = "{unique}" // becomes a name that no other run uses
	client = "{client}" // becomes the number of the client, of those that run at the same time
)

var serial atomic.Int64

// once runs the command, and gives the time from just before the process exists until it has been waited for, and what
// it printed. That goes to a file without a name: a pipe would stay open in the helpers some commands leave behind.
func (c command) once(ctx context.Context) (time.Duration, string, error) { return c.by(ctx, 0) }

// by is once, by one of several clients.
func (c command) by(ctx context.Context, number int) (wall time.Duration, output string, err error) {
	if err := ctx.Err(); err != nil {
		return 0, "", err
	}
	out, err := os.CreateTemp("", "bench-launch")
	if err != nil {
		return 0, "", err
	}
	defer out.Close()
	if err := os.Remove(out.Name()); err != nil {
		return 0, "", err
	}
	id := fmt.Sprintf("bench-%d-%d", os.Getpid(), serial.Add(1))
	args := make([]string, len(c.args))
	fill := strings.NewReplacer(unique, id, client, strconv.Itoa(number))
	for i, a := range c.args {
		args[i] = fill.Replace(a)
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), c.env...)
	cmd.Stdout, cmd.Stderr = out, out
	if wall, err = c.charge.Run(cmd); err != nil {
		err = fmt.Errorf("%s: %w", strings.Join(args, " "), err)
	}
	text, _ := io.ReadAll(io.NewSectionReader(out, 0, 1<<20))
	output = strings.TrimSpace(string(text))
	if err != nil && output != "" {
		err = fmt.Errorf("%w: %s", err, output)
	}
	return wall, output, err
}
