// Command tpm-agent is an SSH agent whose private keys live in the machine's
// TPM 2.0: see `tpm-agent help` or tpm-agent(1).
//
// Each command has a constructor (newKeygenCmd) that turns flags into options and
// makes one call. What a user reads on the terminal follows the rules of package
// term.
package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/tpm-agent/tpm-agent/internal/cli"
	"github.com/tpm-agent/tpm-agent/internal/term"
)

func main() { os.Exit(cli.Main(newRootCmd, commands)) }

var commands = []cli.Command{
	{Name: "serve", New: newServeCmd},
	{Name: "env", New: newEnvCmd},
	{Name: "keygen", New: newKeygenCmd},
	{Name: "import", New: newImportCmd},
	{Name: "srk", New: newSRKCmd},
	{Name: "list", New: newListCmd},
	{Name: "pub", New: newPubCmd},
	{Name: "inspect", New: newInspectCmd},
	{Name: "passwd", New: newPasswdCmd},
	{Name: "add", New: newAddCmd},
	{Name: "remove", New: newRemoveCmd},
	{Name: "unlock", New: newUnlockCmd},
	{Name: "lock", New: newLockCmd},
	{Name: "why", New: newWhyCmd},
	{Name: "version", New: newVersionCmd},
	{Name: "completion", New: newCompletionCmd, Root: true},
	{Name: "man", New: newManCmd, Root: true},
}

func newRootCmd(sys *term.System) *cobra.Command {
	root := &cobra.Command{
		Use:   "tpm-agent",
		Short: "An SSH agent with its private keys in the TPM",
		Long:  rootHelp,
		Example: `  tpm-agent keygen                       # make a key in the TPM
  eval "$(tpm-agent serve --fork)"       # start the agent
  ssh-copy-id -f -i ~/.ssh/id_ecdsa.pub user@host
  ssh user@host`,
		Args:          cli.KnownCommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return term.Usage("a command is missing") },
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       "as the template has it",
	}
	cobra.AddTemplateFunc("version", cli.Version) // which is called only if it is shown
	root.SetVersionTemplate("tpm-agent version {{version}}\n")
	root.SuggestionsMinimumDistance = 2 // cobra sets it for itself only
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetFlagErrorFunc(cli.FlagError)
	root.SetHelpCommand(cli.NewHelpCmd())
	root.PersistentFlags().StringVar(&sys.TPM, "tpm", "", "`ADDRESS` of the TPM: auto, software, device:PATH,\nswtpm:… or mssim:… (default $TPM_AGENT_TPM, else auto)")
	cli.Complete(root, "tpm", "auto", "device:/dev/tpmrm0", "swtpm:path=", "swtpm:host=", "mssim:host=", "software")
	return root
}

const rootHelp = `tpm-agent is an SSH agent that keeps its private keys in the machine's TPM 2.0
chip. It replaces ssh-agent(1); ssh, git and scp work with it unchanged.

Make a key with "tpm-agent keygen" and run the agent with "tpm-agent serve".
Keys are in ~/.ssh, as NAME.tpm and NAME.pub. Details: tpm-agent man.`
