// Package protobuf generates the Go code of the .proto files. The compiler and the
// plugins are Go modules that ci/go.mod pins, so the result depends on no program
// of the machine.
package protobuf

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/bufbuild/protocompile"
	"github.com/bufbuild/protocompile/linker"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"

	"github.com/stemedb/stemedb/ci/process"
)

// plugins are the programs that turn a description into Go code; `tool` lines of
// ci/go.mod name them.
var plugins = []string{"protoc-gen-go", "protoc-gen-go-grpc"}

// Sources lists the .proto files below dir, sorted.
func Sources(dir string) ([]string, error) {
	var files []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && filepath.Ext(path) == ".proto" {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list .proto files: %w", err)
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("list .proto files: there is none below %s", dir)
	}
	sort.Strings(files)
	return files, nil
}

// Generate returns the generated files of one .proto file: path to content. module
// is the folder of ci/go.mod.
func Generate(ctx context.Context, runner process.Runner, module, source string) (map[string]string, error) {
	dir, name := filepath.Split(source)
	descriptors, err := compile(ctx, dir, name)
	if err != nil {
		return nil, fmt.Errorf("compile %s: %w", source, err)
	}
	request, err := proto.Marshal(&pluginpb.CodeGeneratorRequest{
		FileToGenerate: []string{name}, Parameter: proto.String("paths=source_relative"), ProtoFile: descriptors,
	})
	if err != nil {
		return nil, fmt.Errorf("describe %s: %w", source, err)
	}
	files := map[string]string{}
	for _, plugin := range plugins {
		answer, err := runner.Run(ctx, process.Command{
			Name: "go", Args: []string{"tool", plugin}, Dir: module, In: request, Env: []string{"GOWORK=off", "GOFLAGS="},
		})
		if err != nil {
			return nil, fmt.Errorf("generate the code of %s: %w", source, err)
		}
		var response pluginpb.CodeGeneratorResponse
		if err := proto.Unmarshal([]byte(answer), &response); err != nil {
			return nil, fmt.Errorf("read the answer of %s: %w", plugin, err)
		}
		if response.Error != nil {
			return nil, fmt.Errorf("generate the code of %s: %s: %s", source, plugin, response.GetError())
		}
		for _, f := range response.File {
			files[filepath.Join(dir, f.GetName())] = f.GetContent()
		}
	}
	return files, nil
}

// compile returns the descriptors of a file and of its imports, imports first.
func compile(ctx context.Context, dir, name string) ([]*descriptorpb.FileDescriptorProto, error) {
	compiler := protocompile.Compiler{
		Resolver:       protocompile.WithStandardImports(&protocompile.SourceResolver{ImportPaths: []string{dir}}),
		SourceInfoMode: protocompile.SourceInfoStandard, // comments become comments of the Go code
	}
	files, err := compiler.Compile(ctx, name)
	if err != nil {
		return nil, err
	}
	result, ok := files[0].(linker.Result)
	if !ok {
		return nil, fmt.Errorf("the compiler returned a %T", files[0])
	}
	if imports := result.Imports().Len(); imports > 0 {
		return nil, fmt.Errorf("it has %d imports, which this generator does not pass on", imports)
	}
	return []*descriptorpb.FileDescriptorProto{result.FileDescriptorProto()}, nil
}

// Write generates the code of every .proto file below dir and writes it. It returns
// the names of the files.
func Write(ctx context.Context, runner process.Runner, module, dir string) ([]string, error) {
	sources, err := Sources(dir)
	if err != nil {
		return nil, err
	}
	var written []string
	for _, source := range sources {
		files, err := Generate(ctx, runner, module, source)
		if err != nil {
			return nil, err
		}
		for name, content := range files {
			if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
				return nil, fmt.Errorf("write generated code: %w", err)
			}
			written = append(written, name)
		}
	}
	sort.Strings(written)
	return written, nil
}

// IsGenerated reports whether a file is one that Write writes.
func IsGenerated(name string) bool { return strings.HasSuffix(name, ".pb.go") }
