package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"berth/cli/apiv1"
	"berth/cli/flags"
	"berth/cli/progress"
	"berth/cli/rpc"
)

// transfer is a stream of a job's progress and, last, its result.
type transfer interface {
	Header() (rpc.Metadata, error)
}

func (a *app) pullCommand() *cobra.Command {
	var platform string
	var quiet, allTags, allPlatforms bool
	c := &cobra.Command{
		Use: "pull [OPTIONS] NAME[:TAG|@DIGEST]", Short: "Fetch an image from a registry", Args: needArgs(1, 1),
		Example: "  berth pull nginx\n  berth pull --platform linux/arm64 debian:bookworm",
		RunE: plain(func(cmd *cobra.Command, args []string) error {
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			ctx, leave := leavable(cmd.Context())
			defer leave()
			stream, err := e.images.Pull(ctx, &apiv1.ImageServicePullRequest{Reference: args[0], Platform: platform, AllTags: allTags, AllPlatforms: allPlatforms, Auth: authFor(args[0])})
			if err != nil {
				return err
			}
			r, err := follow(ctx, stream, quiet, stream.Recv, (*apiv1.ImageServicePullResponse).GetProgress, (*apiv1.ImageServicePullResponse).GetResult)
			if err != nil {
				return err
			}
			pulled := r.GetReferences() // with -a or --all-platforms
			if len(pulled) == 0 {
				pulled = []string{r.GetReference()}
			}
			if quiet {
				fmt.Fprintln(cmd.OutOrStdout(), strings.Join(pulled, "\n"))
				return nil
			}
			state := "Downloaded newer image for "
			if r.GetUpToDate() {
				state = "Image is up to date for "
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "Digest: %s\nStatus: %s%s\n", r.GetDigest(), state, args[0])
			fmt.Fprintln(cmd.OutOrStdout(), strings.Join(pulled, "\n"))
			return nil
		}),
	}
	c.Flags().StringVar(&platform, "platform", "", "os/arch[/variant] instead of the host's")
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "no progress")
	c.Flags().BoolVarP(&allTags, "all-tags", "a", false, "all tags of the repository")
	c.Flags().BoolVar(&allPlatforms, "all-platforms", false, "for all platforms, with what else the index lists (attestations); the name goes to the one for this host")
	return c
}

func (a *app) pushCommand() *cobra.Command {
	var quiet, allTags, allPlatforms bool
	c := &cobra.Command{
		Use: "push [OPTIONS] NAME[:TAG]", Short: "Send an image to its registry", Args: needArgs(1, 1),
		Example: "  berth tag web 127.0.0.1:5000/web && berth push 127.0.0.1:5000/web",
		RunE: plain(func(cmd *cobra.Command, args []string) error {
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			ctx, leave := leavable(cmd.Context())
			defer leave()
			stream, err := e.images.Push(ctx, &apiv1.ImageServicePushRequest{Reference: args[0], AllTags: allTags, AllPlatforms: allPlatforms, Auth: authFor(args[0])})
			if err != nil {
				return err
			}
			r, err := follow(ctx, stream, quiet, stream.Recv, (*apiv1.ImageServicePushResponse).GetProgress, (*apiv1.ImageServicePushResponse).GetResult)
			if err != nil {
				return err
			}
			if all := r.GetReferences(); len(all) > 0 || quiet {
				if len(all) == 0 {
					all = []string{r.GetReference()}
				}
				fmt.Fprintln(cmd.OutOrStdout(), strings.Join(all, "\n"))
				return nil
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: digest: %s size: %d\n", r.GetReference(), r.GetDigest(), r.GetSizeBytes())
			return nil
		}),
	}
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "no progress")
	c.Flags().BoolVarP(&allTags, "all-tags", "a", false, "all tags of the repository")
	c.Flags().BoolVar(&allPlatforms, "all-platforms", false, "for all platforms; needs an image that was pulled or loaded so")
	return c
}

// leavable gives a context that ends at Ctrl-C: the client leaves, the job goes on.
func leavable(ctx context.Context) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(ctx, syscall.SIGINT)
}

// follow shows the progress of a transfer until its result. When the user leaves, it says how the job can be found.
func follow[M any, R any](ctx context.Context, s transfer, quiet bool, recv func() (*M, error), prog func(*M) *apiv1.JobProgress, result func(*M) *R) (*R, error) {
	bars := progress.New(os.Stderr, quiet)
	defer bars.Close()
	for {
		m, err := recv()
		if err != nil && ctx.Err() != nil {
			bars.Close()
			return nil, &userError{text: "left; the job goes on", hint: "see `berth jobs`; stop it with `berth jobs cancel " + jobID(s) + "`", code: 130}
		}
		if err != nil {
			return nil, err
		}
		if p := prog(m); p != nil {
			bars.Update(p)
		}
		if r := result(m); r != nil {
			return r, nil
		}
	}
}

func jobID(s transfer) string {
	if md, err := s.Header(); err == nil && md.Get("berth-job-id") != "" {
		return md.Get("berth-job-id")
	}
	return "ID"
}

// importChunk is the size of a data message: well under gRPC's 4 MiB limit.
const importChunk = 256 << 10

func (a *app) importCommand() *cobra.Command {
	h := &apiv1.ImageServiceImportRequest_Header{}
	c := &cobra.Command{
		Use: "import [OPTIONS] FILE|- [NAME[:TAG]]", Short: "Make an image from a tar of a root file system", Args: needArgs(1, 2),
		Example: "  tar -C rootfs -c . | berth import -c 'CMD [\"/bin/sh\"]' - base:latest",
		RunE: plain(func(cmd *cobra.Command, args []string) error {
			in, err := openInput(args[0])
			if err != nil {
				return err
			}
			defer in.Close()
			if len(args) == 2 {
				h.Reference = args[1]
			}
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			ctx, cancel := context.WithCancel(cmd.Context())
			defer cancel()
			stream, err := e.images.Import(ctx)
			if err != nil {
				return err
			}
			sent := make(chan error, 1)
			go func() { sent <- sendImport(stream, h, in) }()
			for {
				m, err := stream.Recv()
				if err != nil {
					select {
					case local := <-sent:
						if local != nil {
							return local
						}
					default:
					}
					return err
				}
				if r := m.GetResult(); r != nil {
					fmt.Fprintln(cmd.OutOrStdout(), r.GetImageId())
					return nil
				}
			}
		}),
	}
	flags.Array(c.Flags(), &h.Changes, "change", "c", "Dockerfile instruction to apply, such as 'CMD [\"/bin/sh\"]'")
	c.Flags().StringVarP(&h.Message, "message", "m", "", "comment for the history")
	c.Flags().StringVar(&h.Platform, "platform", "", "platform of the image")
	return c
}

func openInput(name string) (io.ReadCloser, error) {
	if name == "-" {
		return io.NopCloser(os.Stdin), nil
	}
	if strings.HasPrefix(name, "http://") || strings.HasPrefix(name, "https://") {
		return nil, usagef("curl -L "+name+" | berth import -", "import reads files and standard input, not %s", name)
	}
	return os.Open(name)
}

// sendImport sends header and data; a local read error cancels nothing by itself, the caller's context does.
func sendImport(stream apiv1.ImageService_ImportClient, h *apiv1.ImageServiceImportRequest_Header, in io.Reader) error {
	if err := stream.Send(&apiv1.ImageServiceImportRequest{Message: &apiv1.ImageServiceImportRequest_Header_{Header: h}}); err != nil {
		return nil // Recv has the cause
	}
	buf := make([]byte, importChunk)
	for {
		n, err := io.ReadFull(in, buf)
		if n > 0 {
			if stream.Send(&apiv1.ImageServiceImportRequest{Message: &apiv1.ImageServiceImportRequest_Data{Data: buf[:n]}}) != nil {
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
