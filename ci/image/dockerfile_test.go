package image

import (
	"os"
	"regexp"
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

func paths(files []File) []string {
	list := make([]string, len(files))
	for i, f := range files {
		list[i] = f.Path
	}
	sort.Strings(list)
	return list
}
