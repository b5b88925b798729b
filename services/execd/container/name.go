package container

import "math/rand/v2"

// randomName is "adjective_noun" and, so that thousands find a place, two
// digits.
func randomName() string {
	name := adjectives[rand.IntN(len(adjectives))] + "_" + nouns[rand.IntN(len(nouns))]
	if rand.IntN(2) == 0 {
		return name
	}
	n := rand.IntN(100)
	return name + string([]byte{'0' + byte(n/10), '0' + byte(n%10)})
}

var adjectives = []string{
	"able", "amber", "ample", "azure", "balmy", "bold", "brave", "bright", "brisk", "calm", "candid", "clear", "clever",
	"coral", "crisp", "daring", "deft", "eager", "early", "fair", "fleet", "fond", "frank", "gentle", "glad", "golden",
	"hardy", "hearty", "humble", "jolly", "keen", "kind", "light", "lively", "loyal", "lucid", "lunar", "mellow", "merry",
	"mild", "nimble", "noble", "open", "patient", "placid", "plucky", "polar", "prompt", "proud", "quick", "quiet",
	"ready", "robust", "rosy", "sage", "salty", "serene", "sharp", "silver", "smooth", "snug", "solid", "spry", "steady",
	"stout", "sunny", "swift", "tidal", "tidy", "trusty", "upbeat", "valiant", "vivid", "warm", "windy", "wise", "witty",
}

var nouns = []string{
	"anchor", "barge", "bay", "beacon", "bollard", "boom", "bow", "breeze", "brig", "buoy", "cabin", "canal", "capstan",
	"cargo", "channel", "clipper", "coast", "compass", "cove", "crane", "crew", "current", "cutter", "davit", "deck",
	"delta", "dinghy", "dock", "ferry", "fjord", "fleet", "galley", "gull", "harbor", "hatch", "helm", "hull", "island",
	"isthmus", "jetty", "keel", "ketch", "lagoon", "lantern", "ledge", "lighthouse", "lock", "mast", "mooring", "oar",
	"ocean", "pier", "pilot", "port", "prow", "quay", "raft", "reef", "rigging", "rudder", "sail", "schooner", "sextant",
	"shoal", "shore", "skiff", "sloop", "spar", "starboard", "stern", "strait", "tide", "tiller", "trawler", "tug",
	"vessel", "voyage", "wake", "wave", "wharf", "yacht", "yawl",
}
