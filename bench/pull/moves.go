package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// What an image goes through after it was pulled, timed for engines whose command line has Docker's words. Save, push
// and commit follow a pull on the same new disk; load begins on another. Each engine loads what it has saved.

// moves are the commands, in the order in which they are timed.
var moves = []string{"save", "push", "commit", "load"}

// moved is the image they are about: the one that peers, too, have in gzip.
const moved = "large-gzip"

// timesOfDocker is how many times as fast as docker each has to be.
const timesOfDocker = 1.5

// moveTimes are one engine's times of each of the moves.
type moveTimes map[string][]time.Duration

// measureMoves times all moves once for each engine that has them.
func measureMoves(o options, engines []*engine, into map[*engine]moveTimes) error {
	for _, e := range engines {
		if e.cli == "" {
			continue
		}
		if into[e] == nil {
			into[e] = moveTimes{}
		}
		if err := e.move(o, into[e]); err != nil && e.required {
			return fmt.Errorf("%s: %w", e.name, err)
		} else if err != nil {
			fmt.Fprintf(os.Stderr, "bench: %s: %v\n", e.name, err)
		}
	}
	return nil
}

func (e *engine) move(o options, times moveTimes) error {
	archive := filepath.Join(o.work, e.name+".tar")
	defer os.Remove(archive)
	timed := func(move string, args ...string) error {
		syscall.Sync()
		began := time.Now()
		_, err := e.do(append([]string{e.cli}, args...)...)
		if err != nil {
			return err
		}
		took := time.Since(began)
		fmt.Fprintf(os.Stderr, "bench: %s, %s: %s s\n", e.name, move, seconds(took))
		times[move] = append(times[move], took)
		return nil
	}
	name, away := address+"/"+moved, emptyAddress+"/"+moved
	err := e.onNewDisk(o, func(disk string) error {
		if _, err := e.do(e.pull(e, disk, find(moved))...); err != nil {
			return err
		}
		if err := timed("save", "save", "-o", archive, name); err != nil {
			return err
		}
		empty, err := serve(filepath.Join(o.work, "empty"), o.work, emptyAddress)
		if err != nil {
			return err
		}
		defer os.RemoveAll(empty.dir)
		defer empty.close()
		if _, err := e.do(e.cli, "tag", name, away); err != nil {
			return err
		}
		if err := timed("push", "push", "-q", away); err != nil {
			return err
		}
		// 70,000 files and 1.2 GB that a container wrote.
		if _, err := e.do(e.cli, "run", "--name", "box", "--network", "none", name, "cp", "-a", "/opt", "/srv"); err != nil {
			return err
		}
		return timed("commit", "commit", "box", "committed")
	})
	if err != nil {
		return err
	}
	return e.onNewDisk(o, func(string) error { return timed("load", "load", "-q", "-i", archive) })
}

// moveBars compares the engine under test, with the driver that it has by itself, with docker.
func (r *report) moveBars() (bars []bar) {
	var own, docker moveTimes
	for e, t := range r.moves {
		switch {
		case e.name == "berth": // not the one with EROFS layers
			own = t
		case e.name == "docker":
			docker = t
		}
	}
	for _, m := range moves {
		if docker == nil || len(own[m]) == 0 {
			continue
		}
		b := bar{text: fmt.Sprintf("%s %s: at least %.1f × as fast as docker", m, moved, timesOfDocker), got: "docker could not"}
		if len(docker[m]) > 0 {
			times := float64(middle(docker[m])) / float64(middle(own[m]))
			b.got, b.met = fmt.Sprintf("%.2f ×", times), times >= timesOfDocker
		}
		bars = append(bars, b)
	}
	return bars
}

// moveRows are a line for each move, and the engines as columns.
func (r *report) moveRows() (head []string, rows [][]string) {
	head = []string{"median s"}
	var who []*engine
	for _, e := range r.engines {
		if r.moves[e] != nil {
			who, head = append(who, e), append(head, e.name)
		}
	}
	for _, m := range moves {
		row := []string{m}
		for _, e := range who {
			row = append(row, seconds(middle(r.moves[e][m])))
		}
		rows = append(rows, row)
	}
	return head, rows
}

func (r *report) moveMarkdown() string {
	if len(r.moves) == 0 {
		return ""
	}
	head, rows := r.moveRows()
	var b strings.Builder
	fmt.Fprintf(&b, "\n## Save, push, commit and load\n\nOf %s: saved to a file, pushed into an empty registry, a container's copy of its 70,000 files committed, and what was\nsaved loaded on a new disk.\n\n| %s |\n|---|%s\n", moved, strings.Join(head, " | "), strings.Repeat("---:|", len(head)-1))
	for _, row := range rows {
		fmt.Fprintf(&b, "| %s |\n", strings.Join(row, " | "))
	}
	return b.String()
}
