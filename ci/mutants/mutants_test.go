package mutants

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/stemedb/stemedb/ci/process"
	"github.com/stemedb/stemedb/ci/progress"
)

const patchText = `Defect: the answer is
  wrong
Effect: a user sees 41
Test: ./answer -run TestAnswer|TestOther MODE=fast

--- a/answer/answer.go
+++ b/answer/answer.go
@@ -1,3 +1,3 @@
 package answer
 
-func Answer() int { return 42 }
+func Answer() int { return 41 }
`

func TestHeaderOfAMutantIsRead(t *testing.T) {
	fromGit := strings.Replace(patchText, "--- a/", "diff --git a/answer/answer.go b/answer/answer.go\nindex 1..2 100644\n--- a/", 1)
	for _, text := range []string{patchText, fromGit} {
		m, err := parse("off-by-one", []byte(text))
		require.NoError(t, err)
		m.patch = nil
		require.Equal(t, Mutant{
			Name: "off-by-one", Defect: "the answer is wrong", Effect: "a user sees 41",
			Package: "./answer", Tests: []string{"TestAnswer", "TestOther"}, Env: []string{"MODE=fast"},
		}, m)
	}
}

func TestHeaderThatSaysTooLittleIsRefused(t *testing.T) {
	for replace, want := range map[string]string{
		"Defect: the answer is\n  wrong\n|":                   "needs Defect",
		"Effect: a user sees 41\n|":                           "needs Defect (the mistake in the code) and Effect",
		"--- a/answer|+++ a/answer":                           "contains no diff",
		"Test: ./answer|Try: ./answer":                        "neither one of Defect, Effect and Test",
		"./answer -run|answer -run":                           "must be ./FOLDER -run TestName",
		"-run TestAnswer|-run Answer":                         `"Answer" is not the name of a test`,
		"TestAnswer|TestOther|TestAnswer/sub":                 "is not the name of a test",
		"MODE=fast|fast":                                      "use NAME=VALUE",
		"Test: ./answer -run TestAnswer|TestOther MODE=fast|": "Test is",
	} {
		at := strings.LastIndex(replace, "|")
		from, to := replace[:at], replace[at+1:]
		require.Contains(t, patchText, from)
		_, err := parse("x", []byte(strings.Replace(patchText, from, to, 1)))
		require.ErrorContains(t, err, want, "%q becomes %q", from, to)
	}
}

func TestOutcomesAreToldApart(t *testing.T) {
	fails := `{"Action":"output","Test":"TestA/sub","Output":"        \tError Trace:\ta_test.go:7\n"}
{"Action":"fail","Test":"TestA/sub"}
{"Action":"fail","Test":"TestA"}
{"Action":"fail"}`
	for name, row := range map[string]struct {
		stdout string
		caught bool
		err    string
	}{
		"an assertion fails":          {fails, true, ""},
		"it passes":                   {`{"Action":"pass","Test":"TestA"}`, false, ""},
		"it does not compile":         {`{"Action":"build-output","Output":"a.go:1: no\n"}` + "\n" + `{"Action":"fail","FailedBuild":"x"}`, false, "does not compile:\na.go:1: no"},
		"it panics":                   {`{"Action":"output","Test":"TestA","Output":"panic: oh\n"}` + "\n" + `{"Action":"fail","Test":"TestA"}`, false, "not count as a failed assertion"},
		"it panics behind a failure":  {`{"Action":"output","Output":"panic: deadlock\n"}` + "\n" + fails, true, ""},
		"it is skipped":               {`{"Action":"skip","Test":"TestA"}`, false, "not all of the tests ran"},
		"no test of that name exists": {`{"Action":"pass"}`, false, "not all of the tests ran"},
	} {
		t.Run(name, func(t *testing.T) {
			o, err := parseOutcome(row.stdout)
			require.NoError(t, err)
			by, err := o.caught([]string{"TestA"})
			require.Equal(t, row.caught, len(by) > 0)
			if row.err == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, row.err)
		})
	}
}

// checkout creates a repository with one package, its test and these mutants.
func checkout(t *testing.T, test string, patches map[string]string) *Suite {
	t.Helper()
	root := t.TempDir()
	files := map[string]string{
		"go.mod":                "module example\n\ngo 1.26\n",
		"answer/answer.go":      "package answer\n\nfunc Answer() int { return 42 }\n",
		"answer/answer_test.go": test,
	}
	for name, patch := range patches {
		files[filepath.Join(Dir, name+".patch")] = patch
	}
	for name, text := range files {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(root, name), []byte(text), 0o644))
	}
	_, err := process.Exec{}.Run(t.Context(), process.Command{Name: "git", Args: []string{"init", "--quiet"}, Dir: root})
	require.NoError(t, err)
	out := &strings.Builder{}
	t.Cleanup(func() { t.Log(out.String()) })
	return &Suite{Root: root, Runner: process.Exec{}, Reporter: progress.New(out), Out: out}
}

func testOf(condition string) string {
	return "package answer\n\nimport \"testing\"\n\nfunc TestAnswer(t *testing.T) {\n\tif " + condition +
		" {\n\t\tt.Fatal(\"wrong\")\n\t}\n}\n\nfunc TestOther(t *testing.T) {}\n"
}

func TestSuiteRunsEachMutantInACopy(t *testing.T) {
	broken := strings.Replace(patchText, "return 41", "return nothing", 1)
	stale := strings.Replace(patchText, "return 42", "return 43", 1)
	for name, row := range map[string]struct {
		test    string
		patches map[string]string
		want    []string // in the error; empty means no error
	}{
		"all are caught":                {testOf("Answer() != 42"), map[string]string{"one": patchText, "two": strings.Replace(patchText, "return 41", "return 0", 1)}, nil},
		"one is missed":                 {testOf("Answer() < 41"), map[string]string{"one": patchText}, []string{"1 of 1 mutants were not caught", "one: MISSED", "the answer is wrong"}},
		"a test fails without mutants":  {testOf("Answer() != 41"), map[string]string{"one": patchText}, []string{"TestAnswer does not pass without any mutant (fail)"}},
		"a mutant does not compile":     {testOf("Answer() != 42"), map[string]string{"one": broken, "two": patchText}, []string{"1 of 2", "one: the mutant does not compile", "undefined: nothing"}},
		"a mutant does not apply":       {testOf("Answer() != 42"), map[string]string{"one": stale, "two": patchText}, []string{"1 of 2", "one: the patch no longer applies"}},
		"a test does not exist":         {"package answer\n\nimport \"testing\"\n\nfunc TestAnswer(t *testing.T) {}\n", map[string]string{"one": patchText}, []string{"TestOther did not run"}},
		"a mutant makes the test panic": {testOf("Answer() != 42"), map[string]string{"one": strings.Replace(patchText, "return 41", `panic("oh")`, 1)}, []string{"not count as a failed assertion", "panic: oh"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := checkout(t, row.test, row.patches)
			err := s.Run(t.Context())
			if len(row.want) == 0 {
				require.NoError(t, err)
			}
			for _, want := range row.want {
				require.ErrorContains(t, err, want)
			}
			b, err := os.ReadFile(filepath.Join(s.Root, "answer/answer.go"))
			require.NoError(t, err)
			require.Contains(t, string(b), "return 42", "the checkout itself is unchanged")
		})
	}
}

func TestOnlyTheNamedMutantsAreRun(t *testing.T) {
	s := checkout(t, testOf("Answer() < 41"), map[string]string{
		"missed": patchText, "caught": strings.Replace(patchText, "return 41", "return 0", 1),
	})
	require.NoError(t, s.Run(t.Context(), "caught"))
	require.ErrorContains(t, s.Run(t.Context(), "cought"), `there is no mutant "cought"`)
}

func TestCheckFindsWhatHasRotted(t *testing.T) {
	good := checkout(t, testOf("false"), map[string]string{"one": patchText})
	require.NoError(t, good.Check(t.Context()))
	stale := checkout(t, testOf("false"), map[string]string{"one": strings.Replace(patchText, "return 42", "return 43", 1)})
	require.ErrorContains(t, stale.Check(t.Context()), "one: the patch no longer applies")
	renamed := checkout(t, testOf("false"), map[string]string{"one": strings.Replace(patchText, "TestOther", "TestGone", 1)})
	require.ErrorContains(t, renamed.Check(t.Context()), "./answer has no test TestGone")
}

func TestInterruptedSuiteEnds(t *testing.T) {
	s := checkout(t, testOf("Answer() != 42"), map[string]string{"one": patchText})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, s.Run(ctx), context.Canceled)
}

// The checkout's own mutants apply. `make check` also has a step for this,
// since the test cache does not detect changes outside of this module.
func TestMutantsOfThisCheckoutApply(t *testing.T) {
	s := &Suite{Root: filepath.Join("..", ".."), Runner: process.Exec{}, Reporter: progress.New(os.Stderr), Out: os.Stderr}
	root, err := filepath.Abs(s.Root)
	require.NoError(t, err)
	s.Root = root
	require.NoError(t, s.Check(t.Context()))
}
