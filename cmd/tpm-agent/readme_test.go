package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
)

// cmdReadme extracts the commands of README.md and docs/using.md: readme TYPED
// TARGETS. It writes to TYPED what a user types at a prompt, in reading order, and
// to TARGETS commands that fail unless make has the targets that the README names.
func cmdReadme(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: readme TYPED TARGETS")
	}
	root := ts.Getenv("REPOSITORY")
	text, err := os.ReadFile(filepath.Join(root, "README.md"))
	ts.Check(err)
	using, err := os.ReadFile(filepath.Join(root, "docs", "using.md"))
	ts.Check(err)
	var typed, targets strings.Builder
	for _, command := range append(consoleCommands(string(text)), consoleCommands(string(using))...) {
		fmt.Fprintln(&typed, answered(command))
	}
	for _, m := range regexp.MustCompile(`(?m)^(?:sudo )?(make [a-z]+)`).FindAllStringSubmatch(string(text), -1) {
		fmt.Fprintf(&targets, "cd %q && %s -n >/dev/null || exit 1\n", root, m[1])
	}
	if typed.Len() == 0 || targets.Len() == 0 {
		ts.Fatalf("the README has no commands to test")
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(typed.String()), 0o600))
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(targets.String()), 0o600))
}

// consoleCommands returns the lines after a prompt in the console blocks of text.
func consoleCommands(text string) (list []string) {
	in := false
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		switch command, prompt := strings.CutPrefix(line, "$ "); {
		case strings.HasPrefix(line, "```"):
			in = line == "```console"
		case in && prompt:
			list = append(list, command)
		}
	}
	return list
}

// answered returns a command with the answers that a person would type.
func answered(command string) string {
	switch {
	case strings.HasPrefix(command, "tpm-agent keygen"):
		return command + ` <<<$'\n\n\n'` // the default file, no PIN
	case strings.HasPrefix(command, "tpm-agent import"):
		return command + ` <<<$'\n\n'` // no PIN
	default:
		return command + " </dev/null"
	}
}
