package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"berth/cli/apiv1"
	"berth/cli/flags"
	"berth/cli/format"
)

func (a *app) imageNoun() *cobra.Command {
	c := noun("image", "Manage images")
	ls := a.imagesCommand()
	ls.Use, ls.Aliases = "ls [OPTIONS] [REPOSITORY[:TAG]]", []string{"list"}
	rm := a.rmiCommand()
	rm.Use, rm.Aliases = "rm [OPTIONS] IMAGE [IMAGE...]", []string{"remove"}
	c.AddCommand(ls, rm, a.imageInspectCommand(), a.imagePruneCommand(), a.pullCommand(), a.pushCommand(), a.tagCommand(), a.importCommand(), a.historyCommand(),
		a.saveCommand(), a.loadCommand(), a.imageCheckCommand(), a.imageUndoCommand(), a.imageCopyCommand())
	return c
}

type imageRow struct {
	ID           string `header:"IMAGE ID"`
	Repository   string
	Tag          string
	Digest       string
	CreatedSince string `header:"CREATED"`
	CreatedAt    string `header:"CREATED AT"`
	Size         string
}

func (a *app) imagesCommand() *cobra.Command {
	var all, quiet, noTrunc, digests, tree bool
	var filters []string
	var layout string
	c := &cobra.Command{
		Use: "images [OPTIONS] [REPOSITORY[:TAG]]", Short: "List images", Args: needArgs(0, 1),
		Example: "  berth images --format '{{.Repository}}:{{.Tag}} {{.Size}}'",
		RunE: plain(func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				filters = append(filters, "reference="+args[0])
			}
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			var rows []imageRow
			var images []*apiv1.ImageSummary
			req := &apiv1.ImageServiceListRequest{All: all, Filters: filters, WithLayers: tree}
			for {
				p, err := e.images.List(cmd.Context(), req)
				if err != nil {
					return err
				}
				for _, i := range p.GetImages() {
					rows = append(rows, imageRows(i, noTrunc)...)
				}
				images = append(images, p.GetImages()...)
				if req.PageToken = p.GetNextPageToken(); req.PageToken == "" {
					break
				}
			}
			if tree {
				return printImageTree(cmd.OutOrStdout(), images, noTrunc)
			}
			if quiet {
				seen := map[string]bool{}
				for _, r := range rows {
					if !seen[r.ID] {
						fmt.Fprintln(cmd.OutOrStdout(), r.ID)
					}
					seen[r.ID] = true
				}
				return nil
			}
			columns := []string{"Repository", "Tag", "ID", "CreatedSince", "Size"}
			if digests {
				columns = []string{"Repository", "Tag", "Digest", "ID", "CreatedSince", "Size"}
			}
			return format.Rows(cmd.OutOrStdout(), layout, columns, rows)
		}),
	}
	f := c.Flags()
	f.BoolVarP(&all, "all", "a", false, "also those without a name that others build on")
	f.BoolVarP(&quiet, "quiet", "q", false, "only ids")
	f.BoolVar(&noTrunc, "no-trunc", false, "do not shorten")
	f.BoolVar(&digests, "digests", false, "with digests")
	f.BoolVar(&tree, "tree", false, "as a tree of the layers that images share")
	flags.Array(f, &filters, "filter", "f", "only those that match: dangling=, label=, before=, since=, reference=")
	f.StringVar(&layout, "format", "", "table, json, or a template")
	return c
}

// imageRows is a row for each name of an image, or one without a name.
func imageRows(i *apiv1.ImageSummary, noTrunc bool) []imageRow {
	created := i.GetCreatedAt().AsTime().Local()
	id := i.GetId()
	if !noTrunc {
		id = format.ShortID(id)
	}
	row := imageRow{
		ID: id, Repository: "<none>", Tag: "<none>", Digest: "<none>", CreatedSince: format.Ago(created),
		CreatedAt: created.Format("2006-01-02 15:04:05 -0700 MST"), Size: format.Bytes(i.GetSizeBytes()),
	}
	digests := map[string]string{}
	for _, d := range i.GetDigests() {
		if repo, digest, ok := strings.Cut(d, "@"); ok {
			digests[repo] = digest
		}
	}
	var rows []imageRow
	for _, t := range i.GetTags() {
		r := row
		if n := strings.LastIndexByte(t, ':'); n > strings.LastIndexByte(t, '/') {
			r.Repository, r.Tag = t[:n], t[n+1:]
		} else {
			r.Repository = t
		}
		if d := digests[r.Repository]; d != "" {
			r.Digest = d
		}
		rows = append(rows, r)
	}
	if len(rows) == 0 {
		for repo, d := range digests {
			row.Repository, row.Digest = repo, d
		}
		rows = append(rows, row)
	}
	return rows
}

func (a *app) imageInspectCommand() *cobra.Command {
	var layout string
	c := &cobra.Command{
		Use: "inspect [OPTIONS] IMAGE [IMAGE...]", Short: "Show all about images", Args: needArgs(1, -1),
		Example: "  berth image inspect -f '{{.Config.Cmd}}' nginx",
		RunE: plain(func(cmd *cobra.Command, args []string) error {
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			return inspectAll(cmd, args, layout, func(n string) (any, error) { return inspectImage(cmd, e, n) })
		}),
	}
	c.Flags().StringVarP(&layout, "format", "f", "", "json or a template")
	return c
}

func (a *app) rmiCommand() *cobra.Command {
	var force, noPrune bool
	c := &cobra.Command{
		Use: "rmi [OPTIONS] IMAGE [IMAGE...]", Short: "Remove images", Args: needArgs(1, -1), Example: "  berth rmi nginx:1.25",
		RunE: plain(func(cmd *cobra.Command, args []string) error {
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			return each(cmd, args, func(n string) (string, error) {
				r, err := e.images.Remove(cmd.Context(), &apiv1.ImageServiceRemoveRequest{Image: n, Force: force, NoPrune: noPrune})
				return strings.Join(append(prefixed("Untagged: ", r.GetUntagged()), prefixed("Deleted: ", r.GetDeleted())...), "\n"), err
			})
		}),
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "although it has several names or stopped containers use it")
	c.Flags().BoolVar(&noPrune, "no-prune", false, "keep parents without a name")
	return c
}

func prefixed(prefix string, list []string) []string {
	out := make([]string, 0, len(list))
	for _, s := range list {
		out = append(out, prefix+s)
	}
	return out
}

func (a *app) imagePruneCommand() *cobra.Command {
	var all, force bool
	req := &apiv1.ImageServicePruneRequest{}
	c := &cobra.Command{
		Use: "prune [OPTIONS]", Short: "Remove unused images", Args: needArgs(0, 0),
		Example: "  berth image prune -af\n  berth image prune --keep-last 3 --repository 'team/*' --protect '*:stable' --dry-run",
		RunE: plain(func(cmd *cobra.Command, _ []string) error {
			what := "This removes all images without a tag."
			if req.All = all || req.KeepLast > 0 || len(req.Repositories) > 0; req.All {
				what = "This removes images that no container uses, with their tags."
			}
			if !force && !req.DryRun && !confirm(cmd, what) {
				return nil
			}
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			r, err := e.images.Prune(cmd.Context(), req)
			if err != nil {
				return err
			}
			if req.DryRun {
				fmt.Fprintln(cmd.ErrOrStderr(), "Nothing is removed: this is what would be.")
			}
			printPruned(cmd, "Images", append(prefixed("untagged: ", r.GetUntagged()), prefixed("deleted: ", r.GetDeleted())...), r.GetReclaimedBytes())
			return nil
		}),
	}
	f := c.Flags()
	f.BoolVarP(&all, "all", "a", false, "all that no container uses, not only those without a tag")
	f.BoolVarP(&force, "force", "f", false, "do not ask")
	flags.Array(f, &req.Filters, "filter", "", "only those that match: until=, label=, label!=")
	f.BoolVar(&req.DryRun, "dry-run", false, "say what would go and how much that frees, remove nothing")
	f.Int32Var(&req.KeepLast, "keep-last", 0, "keep the n newest images of each repository; implies --all")
	flags.Array(f, &req.Repositories, "repository", "", "only images of repositories that match, such as 'team/*'; implies --all")
	flags.Array(f, &req.Protect, "protect", "", "never these: a pattern of names or an id")
	return c
}

func (a *app) tagCommand() *cobra.Command {
	return &cobra.Command{
		Use: "tag IMAGE NAME[:TAG]", Short: "Give an image a further name", Args: needArgs(2, 2), Example: "  berth tag web registry.example/web:v2",
		RunE: plain(func(cmd *cobra.Command, args []string) error {
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			_, err = e.images.Tag(cmd.Context(), &apiv1.ImageServiceTagRequest{Image: args[0], Reference: args[1]})
			return err
		}),
	}
}

type historyRow struct {
	CreatedSince string `header:"CREATED"`
	CreatedBy    string `header:"CREATED BY"`
	Size         string
	Comment      string
}

func (a *app) historyCommand() *cobra.Command {
	var noTrunc bool
	var layout string
	c := &cobra.Command{
		Use: "history [OPTIONS] IMAGE", Short: "Show how an image was built", Args: needArgs(1, 1), Example: "  berth history nginx",
		RunE: plain(func(cmd *cobra.Command, args []string) error {
			e, err := a.connect()
			if err != nil {
				return err
			}
			defer e.Close()
			r, err := e.images.History(cmd.Context(), &apiv1.ImageServiceHistoryRequest{Image: args[0]})
			if err != nil {
				return err
			}
			var rows []historyRow
			for _, h := range r.GetEntries() {
				by := oneLine(h.GetCreatedBy())
				if x := []rune(by); !noTrunc && len(x) > 60 {
					by = string(x[:59]) + "…"
				}
				rows = append(rows, historyRow{format.Ago(h.GetCreatedAt().AsTime()), by, format.Bytes(h.GetSizeBytes()), h.GetComment()})
			}
			return format.Rows(cmd.OutOrStdout(), layout, []string{"CreatedSince", "CreatedBy", "Size", "Comment"}, rows)
		}),
	}
	c.Flags().BoolVar(&noTrunc, "no-trunc", false, "do not shorten")
	c.Flags().StringVar(&layout, "format", "", "table, json, or a template")
	return c
}
