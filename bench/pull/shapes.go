package main

import (
	"archive/tar"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// shapes are images that are extreme in one way; -images shapes pulls, runs and removes them with each graph driver.
var shapes = []image{
	{"shape-layers", "40 layers, 12,000 files of 8 kB", "gzip", func(string) []layerMaker { return smallFiles(40, 300, 8000) }},
	{"shape-files", "200,000 files of 1.5 kB, four layers", "gzip", func(string) []layerMaker { return smallFiles(4, 50_000, 1500) }},
}

// smallFiles are layers of files whose sizes have that mean, the first with a shell.
func smallFiles(layers, files, mean int) (all []layerMaker) {
	for n := range layers {
		all = append(all, func(w *tar.Writer) error {
			if n == 0 {
				if err := shell(w); err != nil {
					return err
				}
			}
			rnd := rand.New(rand.NewPCG(uint64(n), 2))
			var text []byte // words that come again and again, so that it compresses
			for len(text) < 1<<20 {
				text = fmt.Appendf(text, "%x ", rnd.IntN(5000)*7919)
			}
			for i := range files {
				size := rnd.IntN(2 * mean)
				at := rnd.IntN(len(text) - size)
				if err := writeFile(w, fmt.Sprintf("data/%d/%03d/file%d", n, i%200, i), 0o644, text[at:at+size]); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return all
}

// shell is busybox with the names that the bench calls.
func shell(w *tar.Writer) error {
	if err := busyboxLayers("")[0](w); err != nil {
		return err
	}
	for _, name := range []string{"sh", "true", "find", "cat", "wc"} {
		h := &tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + name, Linkname: "busybox", Mode: 0o777, ModTime: made}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
	}
	return nil
}

// shapeTimes are those of one image with one graph driver.
type shapeTimes struct {
	pull, cpu  time.Duration
	disk       int64         // bytes that its layers take
	first, run time.Duration // the first container, and the median of nine more
	list, read time.Duration // a container that lists all files, and one that reads them
	rmi, gone  time.Duration // until it answers, and until the files are deleted
}

func (t shapeTimes) row(name string) string {
	ms := func(d time.Duration) string { return fmt.Sprintf("%.0f", float64(d)/1e6) }
	return fmt.Sprintf("| %s | %s | %.2f | %d | %s | %.1f | %s | %s | %s | %s |\n", name, ms(t.pull), t.cpu.Seconds(), t.disk>>20,
		ms(t.first), float64(t.run)/1e6, ms(t.list), ms(t.read), ms(t.rmi), ms(t.gone))
}

// measureShapes prints a table for each image, with the medians of all rounds.
func measureShapes(o options, engines []*engine, reg *registry) error {
	for _, i := range shapes {
		if err := reg.ensure(i, o); err != nil {
			return err
		}
		rounds := make([][]shapeTimes, len(engines))
		for range o.rounds {
			for n, e := range engines {
				t, err := e.measureShape(o, i)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", e.name, i.name, err)
				}
				rounds[n] = append(rounds[n], t)
			}
		}
		fmt.Printf("\n## %s\n\n| | pull ms | CPU s | disk MiB | first run ms | run ms | list all ms | read all ms | rmi ms | gone ms |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n", i.title)
		for n, e := range engines {
			fmt.Print(medianShape(rounds[n]).row(e.name))
		}
	}
	return nil
}

func medianShape(all []shapeTimes) (m shapeTimes) {
	pick := func(f func(t *shapeTimes) *time.Duration) {
		var values []time.Duration
		for i := range all {
			values = append(values, *f(&all[i]))
		}
		*f(&m) = middle(values)
	}
	m.disk = all[0].disk
	pick(func(t *shapeTimes) *time.Duration { return &t.pull })
	pick(func(t *shapeTimes) *time.Duration { return &t.cpu })
	pick(func(t *shapeTimes) *time.Duration { return &t.first })
	pick(func(t *shapeTimes) *time.Duration { return &t.run })
	pick(func(t *shapeTimes) *time.Duration { return &t.list })
	pick(func(t *shapeTimes) *time.Duration { return &t.read })
	pick(func(t *shapeTimes) *time.Duration { return &t.rmi })
	pick(func(t *shapeTimes) *time.Duration { return &t.gone })
	return m
}

func (e *engine) measureShape(o options, i image) (t shapeTimes, err error) {
	err = e.onNewDisk(o, func(disk string) error {
		var errs []error
		timed := func(args ...string) time.Duration {
			began := time.Now()
			_, err := e.do(args...)
			errs = append(errs, err)
			return time.Since(began)
		}
		run := func(args ...string) time.Duration {
			return timed(append([]string{e.cli, "run", "--rm", "--network", "none", address + "/" + i.name}, args...)...)
		}
		syscall.Sync()
		before := e.account.Used()
		t.pull = timed(e.pull(e, disk, i)...)
		t.cpu = e.account.Used() - before
		if t.disk, err = allocated(filepath.Join(disk, "berth/imaged/l"), filepath.Join(disk, "berth/imaged/le")); err != nil {
			return err
		}
		t.first = run("true")
		var runs []time.Duration
		for range 9 {
			time.Sleep(50 * time.Millisecond)
			runs = append(runs, run("true"))
		}
		t.run = middle(runs)
		t.list = run("sh", "-c", "find /data -type f -size +100000k")
		t.read = run("sh", "-c", "find /data -type f -exec cat {} + | wc -c")
		began := time.Now()
		t.rmi = timed(e.cli, "rmi", address+"/"+i.name)
		for trash := filepath.Join(disk, "berth/imaged/trash"); ; time.Sleep(time.Millisecond) {
			if left, err := os.ReadDir(trash); err != nil || len(left) == 0 {
				break
			}
		}
		t.gone = time.Since(began)
		return errors.Join(errs...)
	})
	return t, err
}

// allocated is what the files below some directories, of which not all need exist, take of the disk.
func allocated(dirs ...string) (sum int64, err error) {
	for _, dir := range dirs {
		walk := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			st, err := d.Info()
			if err == nil {
				sum += st.Sys().(*syscall.Stat_t).Blocks * 512
			}
			return err
		})
		if walk != nil && !errors.Is(walk, fs.ErrNotExist) {
			err = walk
		}
	}
	return sum, err
}

// ensure makes an image that the registry does not have yet.
func (r *registry) ensure(i image, o options) error {
	if _, err := os.Stat(filepath.Join(r.dir, "docker/registry/v2/repositories", i.name, "_manifests/tags/latest")); err == nil {
		return nil
	}
	fmt.Fprintf(os.Stderr, "bench: making %s\n", strings.TrimPrefix(i.name, "shape-"))
	return r.fill(i, o)
}
