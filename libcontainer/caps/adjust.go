package caps

import "strings"

// Adjust applies --cap-add and --cap-drop to base the way Docker does:
//
//	--cap-add ALL     all, less what is dropped by name
//	--cap-drop ALL    nothing but what is added by name
//	otherwise         base, less what is dropped, plus what is added
//
// "All" is the set all, which for an engine is its own bounding set; what was
// added by name and is not in it is an [UnavailableError], and what is in base
// and not in it falls out silently. Unknown names in either list are an
// [UnknownError].
func Adjust(base, all Set, add, drop []string) (Set, error) {
	addAll, addNames := splitAll(add)
	dropAll, dropNames := splitAll(drop)
	dropped, dropErr := ParseSet(dropNames)
	added, addErr := ParseSet(addNames)
	if addErr != nil || dropErr != nil {
		a, _ := addErr.(UnknownError)
		d, _ := dropErr.(UnknownError)
		return 0, append(a, d...)
	}
	if missing := added &^ all; missing != 0 {
		return 0, UnavailableError(missing)
	}
	switch {
	case addAll:
		return all &^ dropped, nil
	case dropAll:
		return added, nil
	}
	return base&all&^dropped | added, nil
}

// splitAll separates the word ALL from the names.
func splitAll(list []string) (all bool, names []string) {
	for _, name := range list {
		if plain := strings.ToUpper(name); plain == "ALL" || plain == "CAP_ALL" {
			all = true
			continue
		}
		names = append(names, name)
	}
	return all, names
}
