package control

import (
	"fmt"
	"slices"
)

// wholeBesides counts the whole members of a set, excluding the one with this id.
func wholeBesides(set []Member, id string) int {
	whole := 0
	for _, m := range set {
		if m.Whole && m.ID() != id {
			whole++
		}
	}
	return whole
}

// mayGrow refuses a join that could never close: too few members are whole to
// fill the newcomer. While it was open, writes would need the newcomer's
// acknowledgement without any benefit.
func (s *State) mayGrow(newcomer Member) error {
	whole, need := wholeBesides(s.Members, ""), meeting(len(s.Members))
	switch {
	case whole >= need:
		return nil
	case len(s.Members) == 1:
		alone := s.Members[0].Name
		return fmt.Errorf("%w: %s, the only member, lost records. Restore a backup if there is one, then accept the loss "+
			"(stemedb cluster accept-loss %s --yes); %s joins automatically after that", errTooFewWhole, alone, alone, newcomer.Name)
	}
	return fmt.Errorf("%w: %d of the %d members have to be whole, %d are. %s joins automatically when the others have been refilled, or when their losses are accepted "+
		"(stemedb cluster accept-loss NAME --yes)", errTooFewWhole, need, len(s.Members), whole, newcomer.Name)
}

// allowed restricts the command to the loss that the operator has reviewed, and
// to cases that only an operator can resolve.
//
// Accepting a loss costs only the records that no whole member holds: fewer than
// meeting(n) of the others are whole, so with this one there are at most
// meeting(n), which is no more than a read has to hear. Each read hears all of
// them, and a refill closes only with all of their logs. With more whole members
// a read could omit the one that has the record.
func (c *acceptLoss) allowed(s *State, m Member) error {
	change := s.Change
	whole, need := wholeBesides(s.readFrom(), m.ID()), meeting(len(s.readFrom()))
	switch {
	case change != nil && change.Subject == m.ID() && change.Kind != Refill:
		return fmt.Errorf("%w: %s begins with empty volumes (change %d, %s), so its records are gone; the whole members fill it",
			ErrLossStands, m.Name, change.ID, change.Kind)
	case c.Loss != m.report(), m.Loss == "" && c.Change != s.LastChange:
		return fmt.Errorf("%w: the state of %s has changed since it was read, and further records may be lost; check the status and decide again",
			ErrLossStands, m.Name)
	case whole >= need:
		return fmt.Errorf("%w: %d of the other members are whole, and %d are enough to refill %s; restart those that do not answer. "+
			"A member whose volumes are gone has to be started with empty volumes first", ErrLossStands, whole, need, m.Name)
	}
	return nil
}

// lost returns the members of the set whose losses an operator may accept.
func lost(set []Member) (names []string) {
	for _, m := range set {
		if !m.Whole && m.Loss != "" {
			names = append(names, m.Name)
		}
	}
	slices.Sort(names)
	return names
}
