package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"berth/cli/apiv1"
	"berth/cli/format"
	"berth/cli/progress"
	"berth/cli/term"
)

func (a *app) imageCheckCommand() *cobra.Command {
	req := &apiv1.ImageServiceCheckRequest{}
	c := &cobra.Command{
		Use: "check [OPTIONS] [IMAGE...]", Short: "Look for damage in images, and mend it", Args: needArgs(0, -1),
		Example: "  berth image check\n  berth image check --repair web:v1",
		RunE: plain(func(cmd *cobra.Command, args []string) error {
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			ctx, cancel := context.WithCancel(cmd.Context())
			defer cancel()
			req.Images = args
			if req.Repair {
				if req.Auths, err = authsForImages(ctx, e); err != nil {
					return err
				}
			}
			stream, err := e.images.Check(ctx, req)
			if err != nil {
				return err
			}
			bars := progress.New(os.Stderr, !term.IsTerminal(os.Stderr))
			defer bars.Close()
			for {
				m, err := stream.Recv()
				if err != nil {
					return err
				}
				if p := m.GetProgress(); p != nil {
					bars.Update(p)
				}
				if f := m.GetFinding(); f != nil {
					fmt.Fprintln(cmd.OutOrStdout(), findingLine(f))
				}
				if r := m.GetResult(); r != nil {
					bars.Close()
					fmt.Fprintf(cmd.OutOrStdout(), "%d images, %d blobs (%s), %d layers: %d damaged, %d repaired\n",
						r.GetImages(), r.GetBlobs(), format.Bytes(r.GetBlobBytes()), r.GetLayers(), r.GetDamaged(), r.GetRepaired())
					if r.GetDamaged() > r.GetRepaired() {
						return exitCode(1)
					}
					return nil
				}
			}
		}),
	}
	c.Flags().BoolVar(&req.Repair, "repair", false, "fetch what is damaged, and only that, from where the image came from")
	return c
}

// authsForImages are the logins for all registries that images here came from.
func authsForImages(ctx context.Context, e *engine) (all []*apiv1.RegistryAuth, err error) {
	r, err := e.images.List(ctx, &apiv1.ImageServiceListRequest{})
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for _, i := range r.GetImages() {
		for _, name := range i.GetDigests() {
			if host := registryOf(name); !seen[host] {
				seen[host] = true
				if auth := authFor(name); auth != nil {
					all = append(all, auth)
				}
			}
		}
	}
	return all, nil
}

func findingLine(f *apiv1.ImageServiceCheckResponse_Finding) string {
	name := f.GetReference()
	if name == "" {
		name = format.ShortID(f.GetImageId())
	}
	s := name + ": " + f.GetProblem()
	switch {
	case f.GetRepaired():
		s += "; repaired"
	case f.GetReason() != "":
		s += "; not repaired: " + strings.ReplaceAll(f.GetReason(), "\n", "; ")
	}
	return s
}
