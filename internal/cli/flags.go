package cli

import (
	"errors"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/tpm-agent/tpm-agent/internal/term"
)

// FlagError turns an error about a flag into one in our style, with a hint about
// what to type instead if there is a likely fix.
func FlagError(cmd *cobra.Command, err error) error {
	var (
		unknown *pflag.NotExistError
		missing *pflag.ValueRequiredError
		wrong   *pflag.InvalidValueError
	)
	switch {
	case errors.As(err, &unknown):
		return unknownFlag(cmd, unknown.GetSpecifiedName(), unknown.GetSpecifiedShortnames() != "")
	case errors.As(err, &missing):
		value, _ := pflag.UnquoteUsage(missing.GetFlag())
		return term.Usage("%s needs a value: %s", flagName(missing.GetSpecifiedName(), missing.GetSpecifiedShortnames() != ""), value)
	case errors.As(err, &wrong) && wrong.GetFlag().Value.Type() == "int":
		return term.Usage("--%s %s: not a number", wrong.GetFlag().Name, term.Plain(wrong.GetValue()))
	case errors.As(err, &wrong) && wrong.GetFlag().Value.Type() == "bool":
		return term.Usage("--%s takes no value, but has %q", wrong.GetFlag().Name, wrong.GetValue())
	}
	return term.Usage("%w", err)
}

func flagName(name string, short bool) string {
	if short {
		return "-" + term.Plain(name)
	}
	return "--" + term.Plain(name)
}

// unknownFlag names what was perhaps meant: a flag with a similar name, or what
// does here what the flag does in OpenSSH's programs.
func unknownFlag(cmd *cobra.Command, name string, short bool) error {
	err := term.Usage("unknown flag %s", flagName(name, short))
	if short {
		if instead := opensshFlags[cmd.Name()][name]; instead != "" {
			return term.Hint(err, "%s", instead)
		}
		return err
	}
	// Cobra finds similar words among commands only.
	words := &cobra.Command{SuggestionsMinimumDistance: 2}
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		words.AddCommand(&cobra.Command{Use: f.Name, Run: func(*cobra.Command, []string) {}})
	})
	if near := words.SuggestionsFor(name); len(near) > 0 {
		return term.Hint(err, "did you mean --%s?", strings.Join(near, " or --"))
	}
	return err
}

// opensshFlags are the flags that users know from ssh-keygen, ssh-add and
// ssh-agent, by the command that they are likely to be typed at.
var opensshFlags = map[string]map[string]string{
	"keygen": {
		"l": "tpm-agent list shows fingerprints; that of one file: ssh-keygen -l -f FILE.pub",
		"p": "tpm-agent passwd FILE.tpm changes the PIN",
		"y": "tpm-agent pub FILE.tpm prints the public key",
		"i": "tpm-agent import FILE brings a private key into the TPM",
		"s": "ssh-keygen -U -s CA.pub signs certificates with a key of the agent",
		"Y": "ssh-keygen -Y sign -f FILE.pub signs with a key of the agent",
		"R": "that is about known_hosts: ssh-keygen -R HOST",
	},
	"add": {
		"d": "tpm-agent remove FILE",
		"D": "tpm-agent remove --all",
		"l": "ssh-add -l lists what the agent has",
		"L": "ssh-add -L lists what the agent has",
		"T": "ssh-add -T FILE.pub tries a key of the agent",
		"x": "ssh-add -x locks the agent, -X unlocks it",
		"X": "ssh-add -x locks the agent, -X unlocks it",
		"s": "smart cards are for another agent: tpm-agent serve --upstream SOCKET",
		"e": "smart cards are for another agent: tpm-agent serve --upstream SOCKET",
	},
	"remove": {
		"a": "tpm-agent remove --all",
		"d": "tpm-agent remove FILE",
		"D": "tpm-agent remove --all",
	},
	"passwd": {"p": "it is not needed here: tpm-agent passwd FILE.tpm"},
	"lock":   {"x": "ssh-add -x locks the agent itself, and -X unlocks it"},
	"unlock": {"X": "ssh-add -X unlocks an agent that ssh-add -x has locked"},
	"serve": {
		"a": "tpm-agent serve --socket PATH",
		"d": "serve stays in the foreground, unless --fork is given; -v logs more",
		"D": "serve stays in the foreground, unless --fork is given",
		"P": "tpm-agent loads no PKCS#11 or FIDO libraries; an agent that does can be put behind it: --upstream SOCKET",
	},
	"tpm-agent": {
		"a": fromAgent, "c": fromAgent, "d": fromAgent, "D": fromAgent, "k": fromAgent, "s": fromAgent, "t": fromAgent,
		"l": "ssh-add -l lists what the agent has, tpm-agent list the key files as well",
	},
}

const fromAgent = "what ssh-agent does, tpm-agent serve does; in the background with --fork"

// AgentFlag adds --socket, which names the agent to talk to.
func AgentFlag(cmd *cobra.Command, socket *string) {
	cmd.Flags().StringVar(socket, "socket", "", "`PATH` of the agent's socket (default $SSH_AUTH_SOCK,\nelse $XDG_RUNTIME_DIR/tpm-agent/agent.sock)")
}

// ShellFlags adds -s, -c and --fish. what begins their descriptions.
func ShellFlags(cmd *cobra.Command, f *term.ShellForm, what string) {
	cmd.Flags().BoolVarP(&f.Sh, "sh", "s", false, what+"for sh, bash, zsh and the like")
	cmd.Flags().BoolVarP(&f.Csh, "csh", "c", false, what+"for csh and tcsh")
	cmd.Flags().BoolVar(&f.Fish, "fish", false, what+"for fish")
}

// Hide leaves a flag out of the help.
func Hide(cmd *cobra.Command, name string) {
	if err := cmd.Flags().MarkHidden(name); err != nil {
		panic(err)
	}
}
