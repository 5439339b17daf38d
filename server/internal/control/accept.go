package control

import (
	"fmt"
	"slices"
)

// wholeBesides counts the whole members of a set, without the one with this id.
func wholeBesides(set []Member, id string) int {
	whole := 0
	for _, m := range set {
		if m.Whole && m.ID() != id {
			whole++
		}
	}
	return whole
}

// mayGrow refuses a join that could never close: too few members are whole to hand
// everything on. While it was open, writes would need the newcomer's
// acknowledgement for nothing.
func (s *State) mayGrow(newcomer Member) error {
	whole, need := wholeBesides(s.Members, ""), meeting(len(s.Members))
	switch {
	case whole >= need:
		return nil
	case len(s.Members) == 1:
		alone := s.Members[0].Name
		return fmt.Errorf("%w: %s, the only member, lost records. Restore a backup if there is one, then accept the loss "+
			"(stemedb cluster accept-loss %s --yes); %s joins by itself after that", errTooFewWhole, alone, alone, newcomer.Name)
	}
	return fmt.Errorf("%w: %d of the %d members have to be whole, %d are. %s joins by itself when the others have been refilled, or when their losses are accepted "+
		"(stemedb cluster accept-loss NAME --yes)", errTooFewWhole, need, len(s.Members), whole, newcomer.Name)
}

// allowed holds the command to the loss that the operator looked at, and to cases
// in which nothing but an operator's word helps.
//
// Why accepting costs only the records that no whole member holds: fewer than
// meeting(n) of the others are whole, so with this one there are at most
// meeting(n), which is no more than a read has to hear. Each read hears all of
// them, and a refill that closes holds all of their logs. With more whole members
// a read could leave out the one that has the record.
func (c *acceptLoss) allowed(s *State, m Member) error {
	change := s.Change
	whole, need := wholeBesides(s.readFrom(), m.ID()), meeting(len(s.readFrom()))
	switch {
	case change != nil && change.Subject == m.ID() && change.Kind != Refill:
		return fmt.Errorf("%w: %s begins with empty volumes (change %d, %s), so it has no records to count on; it is filled by the whole members",
			ErrLossStands, m.Name, change.ID, change.Kind)
	case c.Loss != m.report(), m.Loss == "" && c.Change != s.LastChange:
		return fmt.Errorf("%w: the state of %s has changed since it was looked at, and records may be lost that nobody knew of then; look at the status and decide again",
			ErrLossStands, m.Name)
	case whole >= need:
		return fmt.Errorf("%w: %d of the other members are whole, and %d are enough to refill %s; bring back those that do not answer. "+
			"One whose volumes are gone has to be started with empty volumes first", ErrLossStands, whole, need, m.Name)
	}
	return nil
}

// lost names the members of the set whose losses an operator may accept.
func lost(set []Member) (names []string) {
	for _, m := range set {
		if !m.Whole && m.Loss != "" {
			names = append(names, m.Name)
		}
	}
	slices.Sort(names)
	return names
}
