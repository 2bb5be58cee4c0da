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
  tpm-agent serve &                      # start the agent
  eval "$(tpm-agent env)"                # tell this shell about it
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
	root.PersistentFlags().StringVar(&g.tpm, "tpm", "", "`ADDRESS` of the TPM: "+strings.Join(addresses(), ", ")+" (default $TPM_AGENT_TPM, else auto)")
	mustComplete(root, "tpm", addresses()...)
	root.AddCommand(newServeCmd(g), newEnvCmd(g), newKeygenCmd(g), newImportCmd(g), newSRKCmd(g), newListCmd(g), newPubCmd(g), newInspectCmd(g), newPasswdCmd(g),
		newAddCmd(g), newRemoveCmd(g), newUnlockCmd(g), newLockCmd(g), newWhyCmd(g),
		newVersionCmd(), newCompletionCmd(), newManCmd(g))
	return root
}

const rootHelp = `tpm-agent is an SSH agent that takes the place of ssh-agent(1). Its private keys
live in the machine's TPM 2.0 chip: a key is a small file that only this TPM can
use. Who steals the file, the disk or a backup has nothing.

Keys are made with "tpm-agent keygen" and kept beside the others in ~/.ssh, as
NAME.tpm and NAME.pub. "tpm-agent serve" is the agent: ssh, git, scp and all that
speaks to an agent through SSH_AUTH_SOCK works with it unchanged.

The TPM is the one at /dev/tpmrm0, unless --tpm or the variable TPM_AGENT_TPM
names another one:

  auto                            /dev/tpmrm0
  device:PATH                     a TPM device
  swtpm:path=SOCKET               a running swtpm
  swtpm:host=ADDRESS,port=NUMBER  a running swtpm
  mssim:host=ADDRESS,port=NUMBER  a running simulator
  software                        a TPM in software that tpm-agent starts and
                                  keeps itself, to try things out without a
                                  chip. Its keys are not protected.

The exit status is 0 when a command did what it says, 1 when it failed, 2 when the
command line makes no sense, and 3 when the key is of a kind that the TPM, or
tpm-agent, does not take.`

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
		Short: "Help about a command",
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
