package main

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"berth/cli/apiv1"
	"berth/cli/flags"
	"berth/cli/format"
)

// registryNoun groups what looks into registries, without the local store.
func (a *app) registryNoun() *cobra.Command {
	c := noun("registry", "Look into registries")
	c.AddCommand(a.registryListCommand(), a.registryTagsCommand(), a.registryRemoveCommand(), a.registryLimitsCommand())
	return c
}

func (a *app) registryListCommand() *cobra.Command {
	var layout string
	c := &cobra.Command{
		Use: "ls [OPTIONS] REGISTRY [TERM]", Aliases: []string{"search"}, Short: "List the repositories of a registry", Args: needArgs(1, 2),
		Example: "  berth registry ls 127.0.0.1:5000\n  berth registry ls registry.example web",
		RunE: plain(func(cmd *cobra.Command, args []string) error {
			req := &apiv1.RegistryServiceListRepositoriesRequest{Registry: strings.TrimSuffix(args[0], "/"), Auth: authFor(args[0] + "/x")}
			if len(args) == 2 {
				req.Term = args[1]
			}
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			r, err := e.registries.ListRepositories(cmd.Context(), req)
			if err != nil {
				return err
			}
			type row struct{ Name string }
			var rows []row
			for _, name := range r.GetRepositories() {
				rows = append(rows, row{req.Registry + "/" + name})
			}
			return format.Rows(cmd.OutOrStdout(), layout, []string{"Name"}, rows)
		}),
	}
	c.Flags().StringVar(&layout, "format", "", "table, json, or a template")
	return c
}

func (a *app) registryTagsCommand() *cobra.Command {
	var layout string
	c := &cobra.Command{
		Use: "tags [OPTIONS] REPOSITORY", Short: "List the tags of a repository in its registry", Args: needArgs(1, 1),
		Example: "  berth registry tags 127.0.0.1:5000/team/web",
		RunE: plain(func(cmd *cobra.Command, args []string) error {
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			r, err := e.registries.ListTags(cmd.Context(), &apiv1.RegistryServiceListTagsRequest{Repository: args[0], Auth: authFor(args[0])})
			if err != nil {
				return err
			}
			type row struct{ Tag string }
			var rows []row
			for _, tag := range slices.Sorted(slices.Values(r.GetTags())) {
				rows = append(rows, row{tag})
			}
			return format.Rows(cmd.OutOrStdout(), layout, []string{"Tag"}, rows)
		}),
	}
	c.Flags().StringVar(&layout, "format", "", "table, json, or a template")
	return c
}

func (a *app) registryRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rm NAME:TAG|NAME@DIGEST [NAME:TAG|NAME@DIGEST...]", Short: "Delete tags, or manifests with all their tags, in their registry", Args: needArgs(1, -1),
		Example: "  berth registry rm 127.0.0.1:5000/web:old",
		RunE: plain(func(cmd *cobra.Command, args []string) error {
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			return each(cmd, args, func(name string) (string, error) {
				last := name[strings.LastIndexByte(name, '/')+1:]
				if !strings.ContainsAny(last, ":@") {
					return "", usagef("name a tag: "+name+":latest", "%s has neither tag nor digest", name)
				}
				_, err := e.registries.Delete(cmd.Context(), &apiv1.RegistryServiceDeleteRequest{Reference: name, Auth: authFor(name)})
				return name, err
			})
		}),
	}
}

func (a *app) registryLimitsCommand() *cobra.Command {
	var bandwidth string
	l := &apiv1.TransferLimits{}
	c := &cobra.Command{
		Use: "limits [OPTIONS]", Short: "Show or change how fast, and how much at once, is transferred", Args: needArgs(0, 0),
		Example: "  berth registry limits\n  berth registry limits --bandwidth 10m --downloads 2\n  berth registry limits --bandwidth none",
		RunE: plain(func(cmd *cobra.Command, _ []string) error {
			switch {
			case bandwidth == "none":
				l.BytesPerSecond = -1
			case bandwidth != "":
				n, err := flags.Size(bandwidth)
				if err != nil || n <= 0 {
					return usagef("give bytes a second, such as 500k or 10m, or none", "bandwidth %q is not a size", bandwidth)
				}
				l.BytesPerSecond = n
			}
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			r, err := e.registries.SetLimits(cmd.Context(), &apiv1.RegistryServiceSetLimitsRequest{Limits: l})
			if err != nil {
				return err
			}
			now, shown := r.GetLimits(), "no limit"
			if n := now.GetBytesPerSecond(); n > 0 {
				shown = format.Bytes(n) + "/s"
			}
			fmt.Fprintf(cmd.OutOrStdout(), "bandwidth  %s\ndownloads  %d at once\nunpacks    %d at once\n", shown, now.GetDownloads(), now.GetUnpacks())
			return nil
		}),
	}
	f := c.Flags()
	f.StringVar(&bandwidth, "bandwidth", "", "bytes a second in each direction, such as 10m; none for no limit")
	f.Int32Var(&l.Downloads, "downloads", 0, "blobs downloaded at once")
	f.Int32Var(&l.Unpacks, "unpacks", 0, "layers unpacked at once")
	return c
}

// imageCopyCommand is `berth image copy`.
func (a *app) imageCopyCommand() *cobra.Command {
	var quiet, all bool
	req := &apiv1.RegistryServiceCopyRequest{}
	c := &cobra.Command{
		Use: "copy [OPTIONS] SOURCE TARGET", Aliases: []string{"cp"}, Short: "Copy an image from registry to registry, without the local store", Args: needArgs(2, 2),
		Example: "  berth image copy debian:bookworm registry.example/debian:bookworm",
		RunE: plain(func(cmd *cobra.Command, args []string) error {
			if all && req.Platform != "" {
				return usagef("", "--all-platforms and --platform do not go together")
			}
			req.Source, req.SourceAuth = args[0], authFor(args[0])
			req.Target, req.TargetAuth = args[1], authFor(args[1])
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			ctx, leave := leavable(cmd.Context())
			defer leave()
			stream, err := e.registries.Copy(ctx, req)
			if err != nil {
				return err
			}
			r, err := follow(ctx, stream, quiet, stream.Recv, (*apiv1.RegistryServiceCopyResponse).GetProgress, (*apiv1.RegistryServiceCopyResponse).GetResult)
			if err != nil {
				return err
			}
			if !quiet {
				fmt.Fprintf(cmd.ErrOrStderr(), "%d manifests, %d blobs, %s sent\n", r.GetManifests(), r.GetBlobs(), format.Bytes(r.GetCopiedBytes()))
			}
			fmt.Fprintln(cmd.OutOrStdout(), r.GetDigest())
			return nil
		}),
	}
	f := c.Flags()
	f.StringVar(&req.Platform, "platform", "", "of an image for several platforms only this os/arch[/variant]")
	f.BoolVar(&all, "all-platforms", false, "all platforms, as without --platform")
	f.BoolVar(&req.Referrers, "referrers", false, "also signatures, SBOMs and what else refers to the image")
	f.BoolVarP(&quiet, "quiet", "q", false, "no progress")
	return c
}

// openFile opens a local file that is sent to the engine.
func openFile(name string) (*os.File, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	if st, err := f.Stat(); err == nil && st.IsDir() {
		f.Close()
		return nil, usagef("pack it: tar -C "+name+" -cf - .", "%s is a directory", name)
	}
	return f, nil
}
