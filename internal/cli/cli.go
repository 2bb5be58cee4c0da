// Package cli turns command lines into calls: flags, help, completion and manual
// pages. It also reports, in our own words, what is wrong with a command line.
package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/tpm-agent/tpm-agent/internal/control"
	"github.com/tpm-agent/tpm-agent/internal/term"
)

// A Command is one command of the program.
type Command struct {
	Name string
	New  func(*term.System) *cobra.Command
	Root bool // it looks at the other commands
}

// Main runs the command that the process's arguments name and returns the exit
// status.
func Main(newRoot func(*term.System) *cobra.Command, commands []Command) int {
	sys := &term.System{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Environ: os.Environ()}
	root := newRoot(sys)
	Add(root, sys, commands, os.Args[1:])
	out := &checkedWriter{to: sys.Stdout} // cobra does not check whether its help is written
	root.SetIn(sys.Stdin)
	root.SetOut(out)
	root.SetErr(sys.Stderr)
	cmd, err := root.ExecuteC()
	if err == nil {
		err = out.err
	}
	return term.Report(sys.Stderr, cmd.CommandPath(), err)
}

// Add adds the commands to root. If the first of args names one, the others are not
// needed. A command that does not say what arguments it takes, takes none.
func Add(root *cobra.Command, sys *term.System, commands []Command, args []string) {
	named := func(c Command) bool { return len(args) > 0 && args[0] == c.Name && !c.Root }
	if i := slices.IndexFunc(commands, named); i >= 0 {
		commands = commands[i : i+1]
	}
	for _, c := range commands {
		cmd := c.New(sys)
		if cmd.Args == nil {
			cmd.Args, cmd.ValidArgsFunction = noArgs, cobra.NoFileCompletions
		}
		root.AddCommand(cmd)
	}
}

// checkedWriter remembers that writing failed.
type checkedWriter struct {
	to  io.Writer
	err error
}

func (w *checkedWriter) Write(p []byte) (int, error) {
	n, err := w.to.Write(p)
	if err != nil && w.err == nil {
		w.err = err
	}
	return n, err
}

// Run returns a cobra function that runs a command until it ends or the user
// interrupts it.
func Run(run func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		ctx, done := term.Interruptible(cmd.Context())
		defer done()
		return run(ctx, args)
	}
}

// KnownCommand refuses an unknown command, and names similar ones.
func KnownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	err := term.Usage("unknown command %q", args[0])
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		return term.Hint(err, "did you mean %s %s?", cmd.CommandPath(), strings.Join(near, " or "))
	}
	return err
}

// noArgs refuses positional arguments.
func noArgs(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return term.Usage("unexpected argument %q", args[0])
	}
	return nil
}

// SomeArgs wants at least one argument.
func SomeArgs(what string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) == 0 {
			return term.Usage("%s is missing", what)
		}
		return nil
	}
}

// OneArg wants exactly one argument.
func OneArg(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > 1 {
			return noArgs(cmd, args[1:])
		}
		return SomeArgs(what)(cmd, args)
	}
}

// NewHelpCmd returns a help command that fails for a command that does not exist;
// cobra's own succeeds.
func NewHelpCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Show the help of a command",
		RunE: func(cmd *cobra.Command, args []string) error {
			found, rest, err := cmd.Root().Find(args)
			switch {
			case err != nil || found == cmd.Root() && len(rest) > 0:
				return KnownCommand(cmd.Root(), args)
			case len(rest) > 0:
				return noArgs(cmd, rest)
			}
			return found.Help()
		},
		ValidArgsFunction: CompleteCommands,
	}
}

// Env prints the command that tells a shell where the agent's socket is.
func Env(sys *term.System, form term.ShellForm, socket string) error {
	shell, err := form.Shell(sys)
	if err != nil {
		return err
	}
	path, err := sys.SocketPath(socket)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(sys.Stdout, shell.Set("SSH_AUTH_SOCK", path))
	return err
}

// Complete registers what the shell can offer for the values of flags, which are
// named with spaces between. A value that ends in = or : is the beginning of one.
// A flag that does not exist is a bug.
func Complete(cmd *cobra.Command, flags string, values ...string) {
	complete := func(_ *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
		directive := cobra.ShellCompDirectiveNoFileComp
		for _, value := range values {
			if strings.HasPrefix(value, typed) && strings.ContainsAny(value[len(value)-1:], "=:") {
				directive |= cobra.ShellCompDirectiveNoSpace
			}
		}
		return values, directive
	}
	for flag := range strings.FieldsSeq(flags) {
		if err := cmd.RegisterFlagCompletionFunc(flag, complete); err != nil {
			panic(err)
		}
	}
}

// CompleteDir has the shell offer directories for a flag.
func CompleteDir(cmd *cobra.Command, flag string) {
	if err := cmd.MarkFlagDirname(flag); err != nil {
		panic(err)
	}
}

// CompleteOneFile offers files once.
func CompleteOneFile(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return nil, cobra.ShellCompDirectiveDefault
}

// CompleteCommands offers the names of commands.
func CompleteCommands(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	var names []string
	for _, c := range cmd.Root().Commands() {
		if len(args) == 0 && c.IsAvailableCommand() {
			names = append(names, c.Name()+"\t"+c.Short)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completingTime bounds how long completion waits for an agent.
const completingTime = time.Second

// CompleteKeys offers the fingerprints of the agent's keys, or files if what was
// typed is not the beginning of a fingerprint.
func CompleteKeys(sys *term.System, socket *string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		if !strings.HasPrefix("SHA256:", typed) && !strings.HasPrefix(typed, "SHA256:") {
			return nil, cobra.ShellCompDirectiveDefault
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completingTime)
		defer cancel()
		c, err := control.Dial(ctx, sys, *socket)
		if err != nil {
			return nil, cobra.ShellCompDirectiveDefault
		}
		defer c.Close()
		keys, _ := c.Keys(ctx)
		var offers []string
		for _, key := range keys {
			if fingerprint := control.FingerprintOf(key); !slices.Contains(args, fingerprint) {
				offers = append(offers, fingerprint+"\t"+term.Plain(key.Comment))
			}
		}
		return offers, cobra.ShellCompDirectiveDefault
	}
}

// version has the data that the Go tool chain wrote into the program.
type version struct {
	Version  string `json:"version"`            // of the module; "(devel)" outside a release
	Commit   string `json:"commit,omitempty"`   // empty when it was not built from a checkout
	Modified bool   `json:"modified,omitempty"` // the checkout had changes
	Time     string `json:"time,omitempty"`     // of the commit, RFC 3339
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

// Version returns the version of the module.
func Version() string { return buildVersion().Version }

// WriteVersion prints the version and how it was built.
func WriteVersion(w io.Writer, asJSON bool) error {
	v := buildVersion()
	if asJSON {
		return term.JSON(w, v)
	}
	_, err := fmt.Fprintln(w, v)
	return err
}

func buildVersion() version {
	v := version{Version: "(unknown)", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	if v.Version = info.Main.Version; v.Version == "" {
		v.Version = "(devel)"
	}
	for _, setting := range info.Settings {
		switch setting.Key {
		case "vcs.revision":
			v.Commit = setting.Value
		case "vcs.time":
			v.Time = setting.Value
		case "vcs.modified":
			v.Modified = setting.Value == "true"
		}
	}
	return v
}

func (v version) String() string {
	s := "tpm-agent " + v.Version
	if v.Commit != "" {
		s += ", commit " + v.Commit
		if v.Modified {
			s += " with changes"
		}
	}
	return s + ", " + v.Go + " " + v.Platform
}

// Optional adds a string flag whose variable stays nil if it is not given: an empty
// PIN is an answer.
func Optional(f *pflag.FlagSet, to **string, name, short, usage string) {
	f.FuncP(name, short, usage, func(s string) error { *to = &s; return nil })
}
