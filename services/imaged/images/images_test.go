package images

import (
	"errors"
	"fmt"
	"os"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"berth/internal/fault"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

func day(n int) time.Time { return time.Date(2026, 1, n, 0, 0, 0, 0, time.UTC) }

// TestFamiliar compares with the library whose rules these are.
func TestFamiliar(t *testing.T) {
	for _, name := range []string{
		"docker.io/library/nginx:latest", "docker.io/library/nginx@sha256:" + strings.Repeat("a", 64), "docker.io/user/app:1",
		"docker.io/library/a/b:1", "host:5000/library/nginx:1", "localhost/x:1", "index.docker.io/library/x:1", "docker.io.evil/library/x:1",
	} {
		named, err := reference.ParseNormalizedNamed(name)
		if err != nil {
			t.Fatal(err)
		}
		if named.String() != name { // not canonical: cannot be recorded
			continue
		}
		if got, want := Familiar(name), reference.FamiliarString(named); got != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
	}
}

func TestPruneRules(t *testing.T) {
	r := newRig(t, t.TempDir())
	base := layerTar("base", strings.Repeat("b", 1000))
	ids := map[digest.Digest]string{}
	for n, names := range [][]string{
		{"app:1"}, {"app:2", "other.example/team/web:1"}, {"app:3"}, {"other.example/team/web:2", "other.example/team/web@"},
		{"other.example/team/web@"}, nil, {"other.example/team/db:1"}, {"used:1"},
	} {
		i := image{created: day(n + 1), layers: [][]byte{base, layerTar("own", strings.Repeat("x", 100+n))}, names: names}
		if n == 2 {
			i.labels = map[string]string{"keep": "yes"}
		}
		ids[r.add(i)] = fmt.Sprint(n)
	}
	used, err := r.images.Find("used:1")
	r.check(err)
	_, err = r.images.Use(used.ID)
	r.check(err)
	glob := func(pattern string) func(string) bool {
		return func(name string) bool { ok, _ := path.Match(pattern, name); return ok }
	}
	all := func(pattern string) func(Info) bool {
		return func(i Info) bool {
			return i.Is(pattern, func(p, name string) bool { ok, _ := path.Match(p, name); return ok })
		}
	}
	for name, c := range map[string]struct {
		rules Rules
		want  string
	}{
		"without a tag":           {Rules{}, "4 5"},
		"all":                     {Rules{All: true}, "0 1 2 3 4 5 6"},
		"last one":                {Rules{All: true, KeepLast: 1}, "0 1 4 5"},
		"last two":                {Rules{All: true, KeepLast: 2}, "0 4 5"},
		"one repository":          {Rules{All: true, Repository: glob("app")}, "0 2"},
		"repositories":            {Rules{All: true, Repository: glob("other.example/team/*")}, "3 4 6"},
		"repositories, last one":  {Rules{All: true, KeepLast: 1, Repository: glob("other.example/team/*")}, "4"},
		"protected by name":       {Rules{All: true, Protect: all("app:*")}, "3 4 5 6"},
		"protected by repository": {Rules{All: true, Protect: all("other.example/team/*")}, "0 2 5"},
		"filtered":                {Rules{All: true, Match: func(i Info) bool { return i.Labels["keep"] == "" && i.Created.Before(day(5)) }}, "0 1 3"},
		"no such repository":      {Rules{All: true, Repository: glob("x*")}, ""},
	} {
		c.rules.DryRun = true
		got, err := r.images.Prune(c.rules)
		r.check(err)
		var gone []string
		for _, d := range got.Deleted {
			if n, ok := ids[d]; ok {
				gone = append(gone, n)
			}
		}
		slices.Sort(gone)
		if text := strings.Join(gone, " "); text != c.want {
			t.Errorf("%s: would delete %q, want %q", name, text, c.want)
		}
	}
	if n := len(r.images.List()); n != len(ids) {
		t.Fatalf("dry runs left %d images", n)
	}
	// What a dry run tells is what happens.
	rules := Rules{All: true, KeepLast: 1}
	rules.DryRun = true
	told, err := r.images.Prune(rules)
	r.check(err)
	rules.DryRun = false
	done, err := r.images.Prune(rules)
	r.check(err)
	sort := func(r *Removal) {
		slices.Sort(r.Untagged)
		slices.Sort(r.Deleted)
	}
	sort(&told)
	sort(&done)
	if fmt.Sprint(told) != fmt.Sprint(done) || done.Bytes == 0 {
		t.Errorf("told %v\ndone %v", told, done)
	}
	r.restart()
	if got := r.counts(); got != "13 5" { // of four images, on one base
		t.Errorf("blobs and layers: %s", got)
	}
}

// TestDamagedImageIsMended: an image that misses a part waits for it, and holds
// it when it comes.
func TestDamagedImageIsMended(t *testing.T) {
	r := newRig(t, t.TempDir())
	layer := layerTar("a", "1")
	i := image{created: day(1), layers: [][]byte{layer}, names: []string{"app:1"}}
	id := r.add(i)
	blob := digest.FromBytes(layer)
	r.close()
	r.check(os.Remove(r.dir + "/blobs/sha256/" + blob.Encoded()))
	layers, err := r.driver.Layers()
	r.check(err)
	r.check(os.RemoveAll(r.driver.Path(layers[0])))
	r.open()
	if _, err := r.images.Use(id); !errors.Is(err, fault.DataLoss) {
		t.Errorf("use of a damaged image: %v", err)
	}
	r.add(i)
	if _, err := r.images.Use(id); err != nil {
		t.Error(err)
	}
	r.images.Unuse(id)
	r.add(image{created: day(2), layers: [][]byte{layer}, names: []string{"app:2"}})
	_, err = r.images.Remove("app:2", false)
	r.check(err)
	if got := r.counts(); got != "3 1" {
		t.Errorf("blobs and layers of the image that was mended: %s", got)
	}
	_, err = r.images.Remove("app:1", false)
	r.check(err)
	if got := r.counts(); got != "0 0" {
		t.Errorf("left: %s", got)
	}
}

// TestCollect: unused images go, the longest unused first, until there is room.
func TestCollect(t *testing.T) {
	r := newRig(t, t.TempDir())
	var all []digest.Digest
	for n := range 5 {
		all = append(all, r.add(image{created: day(9 - n), layers: [][]byte{layerTar("f", strings.Repeat("x", 10_000+n))}, names: []string{fmt.Sprintf("app:%d", n)}}))
	}
	_, err := r.images.Use(all[1])
	r.check(err)
	_, err = r.images.Use(all[0]) // and gone again: used later than the others
	r.check(err)
	r.images.Unuse(all[0])
	pinned := func(i Info) bool { return i.Tags[0] == "app:2" }
	for _, c := range []struct {
		need int64
		want string
	}{{0, "[]"}, {1, "[docker.io/library/app:3]"}, {1 << 30, "[docker.io/library/app:4 docker.io/library/app:0]"}} {
		got, err := r.images.Collect(c.need, pinned)
		if fmt.Sprint(got.Untagged) != c.want || err != nil {
			t.Errorf("to free %d: %v, %v; want %s", c.need, got.Untagged, err, c.want)
		}
	}
}

// TestUndo: a name goes back to what it pointed to, through all it ever did.
func TestUndo(t *testing.T) {
	r := newRig(t, t.TempDir())
	ids := map[digest.Digest]string{"": "none"}
	for n := range 3 {
		ids[r.add(image{created: day(n + 1), layers: [][]byte{layerTar("f", fmt.Sprint(n))}, names: []string{"app:1", fmt.Sprintf("keep:%d", n)}})] = fmt.Sprint(n)
	}
	app, err := ParseName("app:1")
	r.check(err)
	undo := func() string {
		now, was, err := r.images.Undo(app)
		r.check(err)
		found, err := r.images.Find("app:1")
		r.check(err)
		if found.ID != now {
			t.Errorf("app:1 is %s", ids[found.ID])
		}
		return ids[was] + ids[now]
	}
	got := []string{undo(), undo()}
	r.restart()
	got = append(got, undo(), undo())
	if want := "[21 10 02 21]"; fmt.Sprint(got) != want {
		t.Errorf("undone %v, want %s", got, want)
	}
	_, err = r.images.Remove("app:1", false) // keep:1 is still there
	r.check(err)
	if got := undo(); got != "none1" {
		t.Errorf("undone the removal: %s", got)
	}
	for _, name := range []string{"keep:0", "keep:2"} { // no other name: the images go
		_, err := r.images.Remove(name, true)
		r.check(err)
	}
	if _, _, err := r.images.Undo(app); !errors.Is(err, fault.NotFound) {
		t.Errorf("undo to images that are gone: %v", err)
	}
	if past := r.images.Past(app); len(past) != 0 {
		t.Errorf("past: %v", past)
	}
	_, err = r.images.Prune(Rules{All: true})
	r.check(err)
	r.restart()
	if n := r.images.journal.Len(); n != 0 {
		t.Errorf("%d records are left", n)
	}
}

// TestF45ManyImages: 10,000 images with 100,000 layers, or a fifth of that in a
// fifth of the time unless BERTH_IMAGES asks for the whole. What is limited is
// processor time, which other load on the machine does not stretch; the start
// has two processors to spread it over. The store is in memory: what is measured
// is this program, not a disk.
func TestF45ManyImages(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED: takes half a minute")
	}
	count := 2_000
	if n, err := strconv.Atoi(os.Getenv("BERTH_IMAGES")); err == nil {
		count = n
	}
	dir, err := os.MkdirTemp("/dev/shm", "berth-many-")
	if err != nil {
		t.Skipf("SKIPPED: needs a file system in memory: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	r := newRig(t, dir)
	took := func(what string, limit time.Duration, f func()) {
		t.Helper()
		runtime.GC()
		began, cpu := time.Now(), cpuTime(t)
		f()
		cpu = cpuTime(t) - cpu
		t.Logf("%s: %v of processor time, %v", what, cpu.Round(time.Microsecond), time.Since(began).Round(time.Microsecond))
		if limit > 0 && cpu > limit*time.Duration(count)/10_000 {
			t.Errorf("%s took %v, more than %v for 10,000 images", what, cpu, limit)
		}
	}
	took("make them", 0, func() {
		for n := range count {
			i := image{created: day(1).Add(time.Duration(n) * time.Second), names: []string{fmt.Sprintf("repo%d:v%d", n/10, n%10)}}
			for l := range 10 {
				i.layers = append(i.layers, layerTar(fmt.Sprintf("f%d-%d", n, l), ""))
			}
			r.add(i)
		}
	})
	r.close()
	took("start", 1500*time.Millisecond, r.open)
	took("list", 200*time.Millisecond, func() {
		if n := len(r.images.List()); n != count {
			t.Errorf("%d images", n)
		}
	})
	id := r.images.List()[0].ID.Encoded()
	took("find by part of an id", 50*time.Millisecond, func() { _, err = r.images.Find(id[:12]) })
	r.check(err)
	took("remove one", 50*time.Millisecond, func() { _, err = r.images.Remove("repo7:v7", false) })
	r.check(err)
	took("dry run of a prune", time.Second, func() { _, err = r.images.Prune(Rules{All: true, KeepLast: 3, DryRun: true}) })
	r.check(err)
	took("prune", 0, func() { _, err = r.images.Prune(Rules{All: true, KeepLast: 3}) })
	r.check(err)
	if n := len(r.images.List()); n != 3*count/10 {
		t.Errorf("%d images are left", n)
	}
}

func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
