package image

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// instruction is one line of a Dockerfile, continuations joined.
type instruction struct{ name, rest string }

// lastStage reads the instructions from the last FROM onwards.
func lastStage(t *testing.T, file string) []instruction {
	t.Helper()
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	joined := regexp.MustCompile(`\\\n\s*`).ReplaceAllString(string(text), "")
	var stage []instruction
	for _, line := range strings.Split(joined, "\n") {
		name, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch {
		case name == "" || strings.HasPrefix(name, "#"):
		case name == "FROM":
			stage = []instruction{{name, rest}}
		default:
			stage = append(stage, instruction{name, strings.TrimSpace(rest)})
		}
	}
	return stage
}

// fromDockerfile is the Spec that corresponds to the Dockerfile's last stage.
func fromDockerfile(t *testing.T, file string) Spec {
	t.Helper()
	var spec Spec
	spec.Labels = map[string]string{}
	for _, in := range lastStage(t, file) {
		switch in.name {
		case "FROM":
			require.Equal(t, "scratch", in.rest, "the image contains only copied files")
		case "ARG":
		case "COPY":
			words := strings.Fields(in.rest)
			spec.Files = append(spec.Files, File{Path: words[len(words)-1]})
		case "LABEL":
			for _, m := range regexp.MustCompile(`([\w.]+)="([^"]*)"`).FindAllStringSubmatch(in.rest, -1) {
				spec.Labels[m[1]] = strings.ReplaceAll(m[2], "${VERSION}", "dev")
			}
		case "EXPOSE":
			spec.Ports = strings.Fields(in.rest)
		case "WORKDIR":
			spec.WorkingDir = in.rest
		case "USER":
			spec.User = in.rest
		case "ENTRYPOINT":
			spec.Entrypoint = jsonWords(t, in.rest)
		case "CMD":
			spec.Cmd = jsonWords(t, in.rest)
		default:
			t.Fatalf("the last stage has %s, which the builder does not know", in.name)
		}
	}
	return spec
}

func TestDockerfileAndBuilderAgree(t *testing.T) {
	const file = "../../Dockerfile"
	docker := fromDockerfile(t, file)

	var binaries []File
	for _, p := range StemeDBPrograms() {
		binaries = append(binaries, File{Path: p.Path})
	}
	own := StemeDB("dev", "dev", binaries, "")

	require.Equal(t, own.Entrypoint, docker.Entrypoint)
	require.Equal(t, own.Cmd, docker.Cmd)
	require.Equal(t, own.User, docker.User)
	require.Equal(t, own.WorkingDir, docker.WorkingDir)
	require.Equal(t, own.Ports, docker.Ports)
	require.Equal(t, own.Labels, docker.Labels)
	require.Equal(t, paths(own.Files), paths(docker.Files))

	text, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Contains(t, string(text), `-ldflags "`+LinkFlags("${VERSION}")+`"`, "the same linker flags")
	for _, f := range own.Files {
		if f.Content != nil {
			require.Contains(t, string(text), strings.TrimSuffix(string(f.Content), "\n"), "%s has the same content", f.Path)
		}
	}
}

// Docker sends only the files that .dockerignore admits. A package that is left out
// fails the build in docker alone, which no test here runs.
func TestDockerignoreAdmitsThePackagesOfTheServer(t *testing.T) {
	text, err := os.ReadFile("../../.dockerignore")
	require.NoError(t, err)
	var admitted []string
	for line := range strings.Lines(string(text)) {
		if folder, ok := strings.CutPrefix(strings.TrimSpace(line), "!"); ok {
			admitted = append(admitted, folder)
		}
	}
	const module = "github.com/stemedb/stemedb/"
	for _, program := range StemeDBPrograms() {
		list := exec.CommandContext(t.Context(), "go", "list", "-deps", program.Package)
		list.Dir = filepath.Join("../..", program.Module)
		list.Env = append(os.Environ(), "GOWORK=off")
		out, err := list.Output()
		require.NoError(t, err)
		for pkg := range strings.Lines(string(out)) {
			folder, own := strings.CutPrefix(strings.TrimSpace(pkg), module)
			if !own {
				continue
			}
			require.True(t, slices.ContainsFunc(admitted, func(a string) bool {
				return folder == a || strings.HasPrefix(folder, a+"/")
			}), "%s is needed for %s, but .dockerignore leaves it out", folder, program.Path)
		}
	}
}

func paths(files []File) []string {
	list := make([]string, len(files))
	for i, f := range files {
		list[i] = f.Path
	}
	sort.Strings(list)
	return list
}
