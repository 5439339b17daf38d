package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/stemedb/stemedb/server/internal/keys"
)

func keysCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "keys",
		Short: "Make API keys and their hashes on this machine",
		Long:  "Make API keys and their hashes on this machine. Nothing is sent anywhere: a key\nworks once its hash is registered with POST /v1/admin/api-keys.",
	}
	cmd.AddCommand(keysGenerateCommand(), keysHashCommand())
	return cmd
}

func keysGenerateCommand() *cobra.Command {
	var environment, output string
	cmd := &cobra.Command{
		Use:   "generate",
		Short: "Make a new API key and print it with its hash",
		Example: `  stemedb keys generate
  stemedb keys generate --output key > root-api-key`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			raw, err := keys.Generate(environment, nil)
			if err != nil {
				return fail(exitUsage, "--environment: %w", err)
			}
			return printKey(cmd, output, raw)
		},
	}
	cmd.Flags().StringVar(&environment, "environment", keys.Live, "live or test: the intended use of the key")
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text, json, key (only the key) or hash (only the hash)")
	return cmd
}

func keysHashCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:     "hash",
		Short:   "Print the hash of the API key on standard input",
		Long:    "Print the BLAKE3-256 of the API key on standard input. The API identifies keys by\nthis hash. The key is not an argument, because other processes can read arguments.",
		Example: `  stemedb keys hash < root-api-key`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			line, err := bufio.NewReader(cmd.InOrStdin()).ReadString('\n')
			raw := strings.TrimSpace(line)
			if raw == "" {
				return fail(exitUsage, "there is no key on standard input (%w); pipe one in", err)
			}
			if err := keys.ValidateRaw(raw); err != nil {
				return fail(exitUsage, "standard input: %w", err)
			}
			return printKey(cmd, output, raw)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "hash", "hash or json")
	return cmd
}

func printKey(cmd *cobra.Command, output, raw string) error {
	hash := keys.HashOf(raw).String()
	var err error
	switch output {
	case "text":
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "key:  %s\nhash: %s\n", raw, hash)
	case "json":
		err = json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]string{"key": raw, "hash": hash})
	case "key":
		_, err = fmt.Fprintln(cmd.OutOrStdout(), raw)
	case "hash":
		_, err = fmt.Fprintln(cmd.OutOrStdout(), hash)
	default:
		return fail(exitUsage, "--output: %q is not an output format; use text, json, key or hash", output)
	}
	if err != nil {
		return fail(exitFailed, "print: %w", err)
	}
	return nil
}
