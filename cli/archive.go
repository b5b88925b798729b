package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"berth/cli/apiv1"
	"berth/cli/progress"
	"berth/cli/term"
)

func (a *app) saveCommand() *cobra.Command {
	var output string
	var quiet bool
	req := &apiv1.ImageServiceSaveRequest{}
	c := &cobra.Command{
		Use: "save [OPTIONS] IMAGE [IMAGE...]", Short: "Write images into an archive", Args: needArgs(1, -1),
		Example: "  berth save -o web.tar web:v1 web:v2\n  berth save web | zstd | ssh other 'zstd -d | berth load'",
		RunE: plain(func(cmd *cobra.Command, args []string) error {
			if output == "" && term.IsTerminal(os.Stdout) {
				return usagef("give a file with -o, or redirect the output", "an archive is not written to a terminal")
			}
			req.Images = args
			if req.AllPlatforms && req.Platform != "" {
				return usagef("", "--all-platforms and --platform do not go together")
			}
			if req.AllPlatforms && req.Format == "" {
				req.Format = "oci" // the other holds one platform
			}
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			ctx, cancel := context.WithCancel(cmd.Context())
			defer cancel()
			stream, err := e.images.Save(ctx, req)
			if err != nil {
				return err
			}
			bars := progress.New(os.Stderr, quiet || output == "")
			defer bars.Close()
			return writeOutput(output, func(w io.Writer) error {
				return receive(w, bars, stream.Recv)
			})
		}),
	}
	f := c.Flags()
	f.StringVarP(&output, "output", "o", "", "file to write to instead of standard output")
	f.StringVar(&req.Format, "format", "", "docker (default), or oci for the OCI image layout alone")
	f.StringVar(&req.Platform, "platform", "", "os/arch[/variant] to save of images for several")
	f.BoolVar(&req.AllPlatforms, "all-platforms", false, "for all platforms, as an OCI image layout; needs an image that was pulled or loaded so")
	f.BoolVarP(&quiet, "quiet", "q", false, "no progress")
	return c
}

// receive writes the data of a stream to w.
func receive[M interface {
	GetData() []byte
	GetTotalBytes() int64
}](w io.Writer, bars progress.Display, recv func() (M, error)) error {
	p := &apiv1.JobProgress{Item: "archive", Status: "writing"}
	for {
		m, err := recv()
		if errors.Is(err, io.EOF) {
			p.Status = "done"
			bars.Update(p)
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := w.Write(m.GetData()); err != nil {
			return err
		}
		p.TotalBytes = max(p.TotalBytes, m.GetTotalBytes())
		p.CurrentBytes += int64(len(m.GetData()))
		p.TotalBytes = max(p.TotalBytes, p.CurrentBytes)
		p.JobCurrentBytes, p.JobTotalBytes = p.CurrentBytes, p.TotalBytes
		bars.Update(p)
	}
}

// writeOutput lets f write the file name, or standard output if that is empty. A regular file gets its name when it is
// whole, so that a failure leaves the one that was there before, or none.
func writeOutput(name string, f func(io.Writer) error) error {
	if name == "" || name == "-" {
		return f(os.Stdout)
	}
	if st, err := os.Stat(name); err == nil && !st.Mode().IsRegular() {
		if st.IsDir() {
			return usagef("name a file in it", "%s is a directory", name)
		}
		out, err := os.OpenFile(name, os.O_WRONLY, 0) // a pipe or device
		if err != nil {
			return err
		}
		return errors.Join(f(out), out.Close())
	}
	if to, err := filepath.EvalSymlinks(name); err == nil {
		name = to // the file is replaced, not the link to it
	}
	out, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".part-")
	if err != nil {
		return err
	}
	err = f(out)
	if err == nil {
		err = out.Chmod(0o666 &^ umask())
	}
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(out.Name(), name)
	}
	if err != nil {
		os.Remove(out.Name())
	}
	return err
}

// umask is the process's; it can only be read by setting it.
func umask() os.FileMode {
	m := syscall.Umask(0)
	syscall.Umask(m)
	return os.FileMode(m)
}

func (a *app) loadCommand() *cobra.Command {
	var input string
	var quiet bool
	o := &apiv1.ImageServiceLoadRequest_Options{}
	c := &cobra.Command{
		Use: "load [OPTIONS]", Short: "Make images of an archive", Args: needArgs(0, 0),
		Example: "  berth load -i web.tar\n  podman save --format oci-archive web | berth load",
		RunE: plain(func(cmd *cobra.Command, _ []string) error {
			in := os.Stdin
			if input != "" && input != "-" {
				f, err := os.Open(input)
				if err != nil {
					return err
				}
				defer f.Close()
				in = f
			} else if term.IsTerminal(os.Stdin) {
				return usagef("give a file with -i, or redirect the input", "an archive is not read from a terminal")
			}
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			ctx, cancel := context.WithCancel(cmd.Context())
			defer cancel()
			stream, err := e.images.Load(ctx)
			if err != nil {
				return err
			}
			sent := make(chan error, 1)
			go func() {
				err := sendArchive(stream, o, in)
				sent <- err
				if err != nil {
					cancel() // half an archive must not be taken for a whole one
				}
			}()
			bars := progress.New(os.Stderr, quiet)
			defer bars.Close()
			for {
				m, err := stream.Recv()
				if err != nil {
					return firstOf(sent, err)
				}
				if p := m.GetProgress(); p != nil {
					bars.Update(p)
				}
				if r := m.GetResult(); r != nil {
					bars.Close()
					printLoaded(cmd.OutOrStdout(), r, quiet)
					return nil
				}
			}
		}),
	}
	f := c.Flags()
	f.StringVarP(&input, "input", "i", "", "file to read instead of standard input")
	f.StringVar(&o.Platform, "platform", "", "os/arch[/variant] to take of images for several")
	f.BoolVar(&o.AllPlatforms, "all-platforms", false, "all platforms that the archive has, with what else the index lists (attestations); the name goes to the one for this host")
	f.BoolVarP(&quiet, "quiet", "q", false, "no progress")
	return c
}

// firstOf is the local reason for err, if there is one.
func firstOf(local <-chan error, err error) error {
	select {
	case l := <-local:
		if l != nil {
			return l
		}
	default:
	}
	return err
}

func printLoaded(w io.Writer, r *apiv1.ImageServiceLoadResponse_Result, quiet bool) {
	named, other := "Loaded image: ", "Loaded image ID: "
	if quiet {
		named, other = "", ""
	}
	for _, n := range r.GetReferences() {
		fmt.Fprintln(w, named+n)
	}
	for _, id := range r.GetImageIds() {
		fmt.Fprintln(w, other+id)
	}
}

// sendArchive sends options and data. It returns a failure to read.
func sendArchive(stream apiv1.ImageService_LoadClient, o *apiv1.ImageServiceLoadRequest_Options, in io.Reader) error {
	if err := stream.Send(&apiv1.ImageServiceLoadRequest{Message: &apiv1.ImageServiceLoadRequest_Options_{Options: o}}); err != nil {
		return nil // Recv has the cause
	}
	buf := make([]byte, importChunk)
	for {
		n, err := io.ReadFull(in, buf)
		if n > 0 {
			if stream.Send(&apiv1.ImageServiceLoadRequest{Message: &apiv1.ImageServiceLoadRequest_Data{Data: buf[:n]}}) != nil {
				return nil
			}
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			stream.CloseSend()
			return nil
		case err != nil:
			return err
		}
	}
}
