package chart

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/stretchr/testify/require"
	"helm.sh/helm/v3/pkg/chart"
	"sigs.k8s.io/yaml"
)

// hostile are strings that unquoted YAML interprets as another type. The empty
// string is the eighth; it has a separate test below.
var hostile = []string{"123", "0123", "true", "NO", "1e3", "null", "~"}

// nameOnly are keys that name an entry for overlays and are rendered nowhere.
var nameOnly = regexp.MustCompile(`^/(extraObjects|networkPolicy/[a-zA-Z/]+)/text \(key\)$`)

// manifests are places where the user writes YAML or names a kind of object.
var manifests = []string{"/extraObjects/text", "/extraObjects/map/apiVersion", "/extraObjects/map/kind"}

// setting is a place, the marker that represents its string, and the string.
type setting struct {
	place
	marker, text string
}

func (s setting) String() string { return fmt.Sprintf("%s = %q", s.place, s.text) }

// experiment is one situation, with the results for its places.
type experiment struct {
	values map[string]any
	schema *jsonschema.Schema
	places []place

	mu       sync.Mutex
	shown    map[string]bool // by path: the string appeared in an object or in the notes
	accepted map[string]bool // by setting
}

// markerFor identifies a place by four letters that occur nowhere else in a rendering.
func markerFor(i int) string {
	const letters = "abcdefghijklmnoprstuvwxy" // no q and z, so that two in a row cannot be misread
	return "qz" + string(letters[i/len(letters)]) + string(letters[i%len(letters)])
}

// newExperiment finds the places of a situation that take free text: the schema
// accepts a marker there, so it is no enumeration, duration or address.
func newExperiment(t *testing.T, schema *jsonschema.Schema, situation string) *experiment {
	t.Helper()
	x := &experiment{values: fullValues(t, situation), schema: schema, shown: map[string]bool{}, accepted: map[string]bool{}}
	require.NoError(t, schema.Validate(x.values), situation)
	for _, p := range places(x.values) {
		if !slices.Contains(manifests, p.String()) && x.takes(p, markerFor(0)) {
			x.places = append(x.places, p)
		}
	}
	return x
}

// takes reports whether the schema accepts a string in a place. Not for parallel use.
func (x *experiment) takes(p place, text string) bool {
	defer p.put(x.values, text)()
	return x.schema.Validate(x.values) == nil
}

// round gives every place a hostile string that the schema accepts there, unless
// an earlier situation has: after as many rounds as there are strings every
// place had every one.
func (x *experiment) round(turn int, done map[string]bool) (settings []setting) {
	for i, p := range x.places {
		s := setting{place: p, marker: markerFor(i), text: hostile[(i+turn)%len(hostile)]}
		if !done[s.String()] && x.takes(p, s.text) {
			settings = append(settings, s)
		}
	}
	return settings
}

// apart are the settings of the base name: most of the strings are invalid
// names, and the rejection would hide all other places.
func apart(settings []setting) (together, names []setting) {
	for _, s := range settings {
		if path := s.place.String(); path == "/nameOverride" || path == "/fullnameOverride" {
			names = append(names, s)
		} else {
			together = append(together, s)
		}
	}
	return together, names
}

// free keeps the places that are not yet shown and not bound to another value.
func (x *experiment) free(t *testing.T, done map[string]bool) {
	t.Helper()
	var open []setting
	for i, p := range x.places {
		if slices.ContainsFunc(hostile, func(text string) bool { return !done[setting{place: p, text: text}.String()] }) {
			open = append(open, setting{place: p, marker: markerFor(i)})
		}
	}
	x.places = nil
	for _, s := range x.unbind(t, open) {
		x.places = append(x.places, s.place)
	}
}

func asMarker(s setting) string { return s.marker }

// unbind omits the settings that the chart's checks reject in this situation
// for every string: they are bound to another value, and another situation
// frees them.
func (x *experiment) unbind(t *testing.T, settings []setting) (free []setting) {
	t.Helper()
	if len(settings) == 0 {
		return nil
	}
	_, err := x.render(t, settings, asMarker)
	if err == nil || !isRefused(err) {
		return settings
	}
	if len(settings) == 1 {
		return nil
	}
	half := len(settings) / 2
	return append(x.unbind(t, settings[:half]), x.unbind(t, settings[half:])...)
}

// hold renders all settings at once. If the result is wrong, it bisects them,
// down to the single faulty setting; two settings that only interfere with each
// other (two pull secrets with the same name are one) end in different halves.
func (x *experiment) hold(t *testing.T, settings []setting) {
	t.Helper()
	if len(settings) == 0 {
		return
	}
	hidden, err := x.keepText(t, settings)
	switch {
	case err == nil && len(hidden) < len(settings):
		x.hold(t, hidden) // others replaced them: now without these
	case err == nil, len(settings) == 1 && isRefused(err):
		// Hidden, or bound to another value, in this situation; another one frees it.
	case len(settings) == 1:
		t.Errorf("%s: %v", settings[0], err)
	default:
		half := len(settings) / 2
		x.hold(t, settings[:half])
		x.hold(t, settings[half:])
	}
}

// keepText renders the settings' strings, and their markers, and requires the
// first rendering to equal the second one with the markers replaced. It returns
// the settings that appear nowhere.
func (x *experiment) keepText(t *testing.T, settings []setting) (hidden []setting, err error) {
	t.Helper()
	got, err := x.render(t, settings, func(s setting) string { return s.text })
	if err != nil {
		return nil, err
	}
	reference, err := x.render(t, settings, asMarker)
	if err != nil {
		return nil, err
	}
	want := scalars(reference)
	all := strings.Join(want, "\n") + reference.notes
	var pairs []string
	for _, s := range settings {
		pairs = append(pairs, s.marker, s.text)
	}
	replacer := strings.NewReplacer(pairs...)
	for i := range want {
		want[i] = replacer.Replace(want[i])
	}
	slices.Sort(want)
	if err := sameLines(want, scalars(got)); err != nil {
		return nil, err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, s := range settings {
		if !strings.Contains(all, s.marker) {
			hidden = append(hidden, s)
			continue
		}
		x.shown[s.place.String()], x.accepted[s.String()] = true, true
	}
	return hidden, nil
}

// sameLines reports the difference of two sorted lists.
func sameLines(want, got []string) error {
	if slices.Equal(want, got) {
		return nil
	}
	return fmt.Errorf("rendered %q instead of %q", without(got, want), without(want, got))
}

func without(list, other []string) (rest []string) {
	other = slices.Clone(other)
	for _, line := range list {
		if at := slices.Index(other, line); at >= 0 {
			other = slices.Delete(other, at, at+1)
			continue
		}
		rest = append(rest, line)
	}
	return rest
}

func (x *experiment) render(t *testing.T, settings []setting, choose func(setting) string) (*release, error) {
	t.Helper()
	values := deepCopy(t, x.values)
	for _, s := range slices.Backward(settings) { // deeper ones first: their paths contain the old keys
		s.put(values, choose(s))
	}
	return renderValues(t, values)
}

// renderValues renders complete values: the chart's own are not merged in, and
// the caller has checked the schema. An object that cannot be decoded is also
// an error, so that the caller can report its cause.
func renderValues(t *testing.T, values map[string]any) (got *release, err error) {
	t.Helper()
	raw, err := yaml.Marshal(values)
	require.NoError(t, err)
	c := &catcher{TB: t}
	defer func() {
		if p := recover(); p != nil {
			if p != any(c) {
				panic(p)
			}
			err = errors.New(c.said)
		}
	}()
	return tryRender(c, options{values: []string{string(raw)}, noSchema: true, edit: func(c *chart.Chart) { c.Values = map[string]any{} }})
}

// catcher turns a failed requirement into an error instead of ending the test.
type catcher struct {
	testing.TB
	said string
}

func (c *catcher) Errorf(format string, args ...any) { c.said += fmt.Sprintf(format, args...) }
func (c *catcher) FailNow()                          { panic(c) }

func isRefused(err error) bool { return strings.Contains(err.Error(), "These values cannot work") }

// Every string and every key that a value can set stays a string: it is set to
// each string that YAML would interpret as a number, a boolean or null, and is
// rendered as exactly that text.
func TestEveryStringStaysAString(t *testing.T) {
	schema, err := jsonschema.NewCompiler().Compile(filepath.Join(chartDir, "values.schema.json"))
	require.NoError(t, err)
	shown, tried, accepted := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for i, situation := range situations {
		x := newExperiment(t, schema, situation)
		for _, p := range x.places {
			tried[p.String()] = true
		}
		x.free(t, accepted)
		rounds := make([][]setting, len(hostile))
		for turn := range hostile {
			rounds[turn] = x.round(turn, accepted)
		}
		t.Run(fmt.Sprint("situation ", i), func(t *testing.T) {
			for turn, settings := range rounds {
				t.Run(fmt.Sprint("round ", turn), func(t *testing.T) {
					t.Parallel()
					together, names := apart(settings)
					x.hold(t, together)
					for _, s := range names {
						x.hold(t, []setting{s})
					}
				})
			}
		})
		maps.Copy(shown, x.shown)
		maps.Copy(accepted, x.accepted)
	}
	var hidden []string
	for path := range tried {
		if !shown[path] && !nameOnly.MatchString(path) {
			hidden = append(hidden, path)
		}
	}
	require.Empty(t, hidden, "these are set and show nowhere")
	require.Greater(t, len(tried), 100)
	require.Greater(t, len(accepted), 600)
}

// emptyMeans are the places where the empty string has a special meaning, which
// the values' comments describe and separate tests check.
var emptyMeans = []string{"/tls/caKey"}

// The empty string is rendered as such, or is equivalent to omission, in every
// place whose schema accepts it.
func TestTheEmptyStringIsEmptyOrNothing(t *testing.T) {
	schema, err := jsonschema.NewCompiler().Compile(filepath.Join(chartDir, "values.schema.json"))
	require.NoError(t, err)
	var mu sync.Mutex
	held := map[string]bool{}
	for i, situation := range situations {
		x := newExperiment(t, schema, situation)
		var empty []setting
		for at, p := range x.places {
			if !held[p.String()] && !slices.Contains(emptyMeans, p.String()) && x.takes(p, "") {
				empty = append(empty, setting{place: p, marker: markerFor(at)})
			}
		}
		t.Run(fmt.Sprint("situation ", i), func(t *testing.T) {
			const lanes = 4
			for lane := range lanes {
				t.Run(fmt.Sprint("lane ", lane), func(t *testing.T) {
					t.Parallel()
					for n := lane; n < len(empty); n += lanes {
						err := x.emptyOrNothing(t, empty[n])
						if err != nil && !isRefused(err) {
							t.Errorf("%s: %v", empty[n], err)
						}
						mu.Lock()
						held[empty[n].place.String()] = err == nil
						mu.Unlock()
					}
				})
			}
		})
	}
	require.Greater(t, len(held), 60)
}

// emptyOrNothing requires the rendering of an empty string to equal the
// rendering without the value, or the one in which the string itself is empty.
func (x *experiment) emptyOrNothing(t *testing.T, s setting) error {
	t.Helper()
	got, err := x.render(t, []setting{s}, func(s setting) string { return s.text })
	if err != nil {
		return err
	}
	left := deepCopy(t, x.values)
	if s.leaveOut(left) {
		nothing, err := renderValues(t, left)
		if err == nil && sameLines(scalars(nothing), scalars(got)) == nil {
			return nil
		}
	}
	_, err = x.keepText(t, []setting{s})
	return err
}
