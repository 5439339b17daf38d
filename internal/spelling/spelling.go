// Package spelling suggests the name that a reader may have meant.
package spelling

// Nearest returns the candidate with the smallest distance from name; the first of
// equals, "" without candidates.
func Nearest(name string, candidates []string) string {
	return NearestBy(candidates, func(candidate string) int { return Distance(name, candidate) })
}

// NearestBy is Nearest with another distance.
func NearestBy(candidates []string, distance func(candidate string) int) string {
	best, least := "", -1
	for _, c := range candidates {
		if d := distance(c); least < 0 || d < least {
			best, least = c, d
		}
	}
	return best
}

// Distance is Levenshtein's, in bytes: insertions, deletions and substitutions.
func Distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			next := min(row[j]+1, row[j+1]+1, diagonal+cost)
			diagonal, row[j+1] = row[j+1], next
		}
	}
	return row[len(b)]
}
