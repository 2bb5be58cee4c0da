package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tpm-agent/tpm-agent/internal/tcti"
	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// run is the program: it runs the command that args name and returns the exit
// status.
func run(args []string, sys system) int {
	root := newRootCmd(sys)
	out := &checkedWriter{to: sys.stdout} // cobra does not look whether its help is written
	root.SetArgs(args)
	root.SetIn(sys.stdin)
	root.SetOut(out)
	root.SetErr(sys.stderr)
	cmd, err := root.ExecuteC()
	if err == nil {
		err = out.err
	}
	return report(sys.stderr, cmd.CommandPath(), err)
}

// global has the options of all commands.
type global struct {
	sys system
	tpm string
}

func newRootCmd(sys system) *cobra.Command {
	g := &global{sys: sys}
	root := &cobra.Command{
		Use:   "tpm-agent",
		Short: "An SSH agent with its private keys in the TPM",
		Long:  rootHelp,
		Example: `  tpm-agent keygen                       # make a key in the TPM
  eval "$(tpm-agent serve --fork)"       # start the agent
  ssh-copy-id -f -i ~/.ssh/id_ecdsa.pub user@host
  ssh user@host`,
		Args:          knownCommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return usage("a command is missing") },
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       buildVersion().Version,
	}
	root.SuggestionsMinimumDistance = 2 // cobra sets it for itself only
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetFlagErrorFunc(flagError)
	root.SetHelpCommand(newHelpCmd())
	root.PersistentFlags().StringVar(&g.tpm, "tpm", "", "`ADDRESS` of the TPM: auto, software, device:PATH,\nswtpm:… or mssim:… (default $TPM_AGENT_TPM, else auto)")
	mustComplete(root, "tpm", addresses()...)
	root.AddCommand(newServeCmd(g), newEnvCmd(g), newKeygenCmd(g), newImportCmd(g), newSRKCmd(g), newListCmd(g), newPubCmd(g), newInspectCmd(g), newPasswdCmd(g),
		newAddCmd(g), newRemoveCmd(g), newUnlockCmd(g), newLockCmd(g), newWhyCmd(g),
		newVersionCmd(), newCompletionCmd(), newManCmd(g))
	return root
}

const rootHelp = `tpm-agent is an SSH agent that keeps its private keys in the machine's TPM 2.0
chip. It replaces ssh-agent(1); ssh, git and scp work with it unchanged.

Make a key with "tpm-agent keygen" and run the agent with "tpm-agent serve".
Keys are in ~/.ssh, as NAME.tpm and NAME.pub. Details: tpm-agent man.`

func addresses() []string {
	return []string{"auto", "device:/dev/tpmrm0", "swtpm:path=", "swtpm:host=", "mssim:host=", "software"}
}

// knownCommand refuses what is no command, and names what was perhaps meant.
func knownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	err := usage("unknown command %q", args[0])
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		return withHint(err, "did you mean %s %s?", cmd.CommandPath(), strings.Join(near, " or "))
	}
	return err
}

// noArgs refuses positional arguments.
func noArgs(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usage("unexpected argument %q", args[0])
	}
	return nil
}

// someArgs wants at least one.
func someArgs(what string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) == 0 {
			return usage("%s is missing", what)
		}
		return nil
	}
}

// address is the TPM that was asked for: by flag, else by environment, else
// the machine's own.
func (g *global) address() (tcti.Address, error) {
	asked, where := g.tpm, "--tpm"
	if asked == "" {
		asked, where = g.sys.getenv("TPM_AGENT_TPM"), "TPM_AGENT_TPM"
	}
	if asked == "" {
		asked = "auto"
	}
	addr, err := tcti.Parse(asked)
	if err != nil {
		return addr, &usageError{fmt.Errorf("%s: %w", where, err)}
	}
	return addr, nil
}

// reach opens the TPM and closes it again: for who asks the user for secrets that
// would be of no use without it.
func reach(ctx context.Context, addr tcti.Address) error {
	conn, err := addr.Open(ctx)
	if err != nil {
		return orInterrupted(ctx, err)
	}
	return conn.Close()
}

// openTPM returns the TPM at addr. It is opened when it is first used. The
// caller closes it.
func openTPM(addr tcti.Address) *tpmkey.TPM {
	return tpmkey.New(func(ctx context.Context) (tpmkey.Conn, error) {
		conn, err := addr.Open(ctx)
		if err != nil {
			return nil, err
		}
		return conn, nil
	})
}

// newHelpCmd replaces cobra's, which answers a command that does not exist with
// success.
func newHelpCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Show the help of a command",
		RunE: func(cmd *cobra.Command, args []string) error {
			found, rest, err := cmd.Root().Find(args)
			switch {
			case err != nil || found == cmd.Root() && len(rest) > 0:
				return knownCommand(cmd.Root(), args)
			case len(rest) > 0:
				return noArgs(cmd, rest)
			}
			return found.Help()
		},
		ValidArgsFunction: completeCommands,
	}
}
