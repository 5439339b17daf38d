// Package remedy holds the advice to operators that depends on the number of
// members of the cluster. Volumes that other members can refill may be emptied.
// The volumes of a single node, or of one of two, must not be emptied, and no
// text advises that.
package remedy

import "fmt"

// Unknown means that the number of members is unknown. The advice then covers
// each case.
const Unknown = 0

// ThisNode is the node that gives the advice.
const ThisNode = "this node"

// Volumes is the advice for a node whose volumes cannot be used. members
// includes the node itself. putBack is the instruction that destroys nothing. A
// majority of the members must admit a node that joins as a new member, and its
// previous incarnation counts as one of them.
func Volumes(members int, node, putBack string) string {
	switch {
	case members <= Unknown:
		return fmt.Sprintf("%s. When %s is the only member, or one of two, do not empty its volumes: they may hold the only copy. "+
			"When it is one of three or more, and \"stemedb cluster status\" of another one shows a majority of them alive and whole, "+
			"you can also empty both volumes of %s, so that it joins as a new member and is refilled by the others", putBack, node, node)
	case members == 1:
		return fmt.Sprintf("%s is the only member, so its records, members and API keys are held nowhere else: %s; "+
			"do not empty the volumes, nobody could refill them", node, putBack)
	case members == 2:
		return fmt.Sprintf("the other one of the 2 members holds the table and the records too, but cannot admit %s as a new member without its vote: %s; "+
			"do not empty the volumes", node, putBack)
	}
	return fmt.Sprintf("the other %d of the %d members hold the table and the records too: when \"stemedb cluster status\" of one of them shows at least %d of them alive and whole, "+
		"empty both volumes of %s, so that it joins as a new member and is refilled by them; otherwise %s", members-1, members, members/2+1, node, putBack)
}

// Lost is the advice when the log of the named node lost records.
func Lost(members int, name string) string {
	alone := fmt.Sprintf("restore a backup, or accept the loss: stemedb cluster accept-loss %s --yes; do not empty the volumes", name)
	switch {
	case members <= Unknown:
		return "the other members refill it; when it is the only member, " + alone
	case members == 1:
		return "it is the only member, so nobody can refill it: " + alone
	}
	return "the other members refill it"
}

// Space is the advice for a node that refuses writes because a volume is nearly
// full.
func Space(members int) string {
	free := "free or add disk space on the node's volumes; writes then resume automatically"
	switch {
	case members <= Unknown:
		return free + "; until then write through another member, if there is one"
	case members == 1:
		return free
	}
	return free + "; until then write through another member"
}

// Refill describes how a node that lost records gets them back.
func Refill(members int) string {
	if members == 1 {
		return "it is the only member, so nothing is pulled"
	}
	return "it pulls the other members' logs again from the beginning"
}
