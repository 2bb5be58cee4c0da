package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"
)

type serveOptions struct {
	socket         string
	keyDirs        []string
	upstreams      []string
	life           string // as it was given
	lifetime       time.Duration
	noSoftwareKeys bool
	allowSHA1      bool
	prompt         string // as it was given
	promptTimeout  string // as it was given
	asking         asking
	pinTTL         []string
	pinFrom        []string
	confirm        bool
	logLevel       string
	verbose        bool
	form           shellForm
	fork, forked   bool // forked: this is the process that --fork has started
	kill           bool
	blocked        bool     // SIGUSR1 is: see blockForget
	command        []string // to run with the agent; none: serve until told to end
}

func newServeCmd(g *global) *cobra.Command {
	var o serveOptions
	cmd := &cobra.Command{
		Use:   "serve [-- COMMAND [ARG...]]",
		Short: "Run the agent",
		Long:  serveHelp,
		Example: `  tpm-agent serve &                    # for this login
  eval "$(tpm-agent env)"
  eval "$(tpm-agent serve --fork)"     # the same in the background
  eval "$(tpm-agent serve -k)"         # end it
  tpm-agent serve -- ssh user@host     # for one command
  tpm-agent serve -- bash              # for one shell
  tpm-agent --tpm software serve       # try it out without a chip
  systemctl --user enable --now tpm-agent.socket`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.check(cmd, args); err != nil {
				return err
			}
			return runServe(cmd, g, o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.socket, "socket", "", "listen on a socket at `PATH` (default\n$XDG_RUNTIME_DIR/tpm-agent/agent.sock)")
	f.StringArrayVar(&o.keyDirs, "key-dir", nil, "read keys from `DIR` (default ~/.ssh; repeatable)")
	completeDir(cmd, "key-dir")
	f.StringArrayVar(&o.upstreams, "upstream", nil, "also offer the keys of the agent at `SOCKET`\n(repeatable)")
	f.StringVarP(&o.life, "lifetime", "t", "", "forget keys that are added without a lifetime\nafter this `TIME`: 90 (seconds), 10m, 1h30m, 2w")
	f.BoolVar(&o.noSoftwareKeys, "no-software-keys", false, "refuse to keep private keys from ssh-add in memory")
	f.BoolVar(&o.allowSHA1, "allow-sha1", false, "sign with RSA and SHA-1 if a client asks for it")
	f.StringVar(&o.prompt, "prompt", "auto", "ask in `WAYS`, such as pinentry,terminal, or none;\nsee tpm-agent man serve")
	f.StringVar(&o.promptTimeout, "prompt-timeout", "2m", "close a question after this `TIME`")
	f.StringArrayVar(&o.pinTTL, "pin-ttl", nil, "remember PINs for `[KEY=]TTL`, such as 15m or\nid_rsa=8h; session: until told to forget\n(repeatable)")
	f.StringArrayVar(&o.pinFrom, "pin-from", nil, "take the PIN of a key from a source, `KEY=SOURCE`:\nfd:N, file:PATH or credential:NAME (repeatable)")
	f.BoolVar(&o.confirm, "confirm", false, "ask before each use of a key that the agent holds")
	f.StringVar(&o.logLevel, "log-level", "", "log from this `LEVEL` on: debug, info, warn or error\n(default info; warn with a COMMAND)")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "same as --log-level debug")
	f.BoolVar(&o.fork, "fork", false, "run in the background; print what to run")
	f.BoolVar(&o.forked, "forked", false, "")
	f.BoolVarP(&o.kill, "kill", "k", false, "end the agent whose process ID is in SSH_AGENT_PID")
	o.form.flags(cmd, "print commands ")
	if err := f.MarkHidden("forked"); err != nil {
		panic(err)
	}
	mustComplete(cmd, "log-level", "debug", "info", "warn", "error")
	mustComplete(cmd, "prompt", "auto", "none", "pinentry", "askpass", "terminal", "systemd")
	mustComplete(cmd, "pin-ttl", "15m", "8h", "session")
	mustComplete(cmd, "pin-from")
	mustComplete(cmd, "lifetime")
	mustComplete(cmd, "prompt-timeout")
	return cmd
}

// check refuses options that do not go together, and takes the command.
func (o *serveOptions) check(cmd *cobra.Command, args []string) error {
	dash := cmd.ArgsLenAtDash()
	switch {
	case len(args) > 0 && dash != 0:
		return withHint(usage("unexpected argument %q", args[0]), "a command to run comes after --: tpm-agent serve -- %s", shQuote(args[0]))
	case dash == 0 && len(args) == 0:
		return usage("the command after -- is missing")
	case o.kill && len(args) > 0:
		return usage("-k ends an agent: no command can be run")
	case o.kill && serveFlags(cmd) > 1:
		return usage("-k ends an agent: of the other options it takes -s, -c and --fish")
	case o.fork && len(args) > 0:
		return usage("--fork cannot be used with a command: the agent ends with that")
	case o.form.asked() && len(args) > 0:
		return usage("-s, -c and --fish say how to print where the agent is: with a command, nothing is printed")
	case o.verbose && cmd.Flags().Changed("log-level"):
		return usage("-v is --log-level debug: only one of them can be given")
	}
	o.command = args
	if cmd.Flags().Changed("lifetime") {
		var err error
		if o.lifetime, err = parseLifetime(o.life); err != nil {
			return usage("-t: %w", err)
		}
	}
	return o.asking.read(o.prompt, o.promptTimeout)
}

// serveFlags counts the options that were given, but for those that choose a
// shell.
func serveFlags(cmd *cobra.Command) int {
	given := cmd.Flags().NFlag()
	for _, name := range []string{"sh", "csh", "fish"} {
		if cmd.Flags().Changed(name) {
			given--
		}
	}
	return given
}

const serveHelp = `Runs the agent in the foreground, with the TPM keys in ~/.ssh, keys that you
add with ssh-add, and the keys of --upstream agents.

--fork runs it in the background and prints what the shell must run, as
ssh-agent does. With a COMMAND it runs until the command ends. Details:
tpm-agent man serve.`

// runServe does what the options ask for.
func runServe(cmd *cobra.Command, g *global, o serveOptions) error {
	form, err := o.form.shell(g.sys.getenv("SHELL"))
	switch {
	case err != nil:
		return err
	case o.kill:
		return runKill(g.sys, form)
	case o.fork && !o.forked:
		return runFork(g.sys, form)
	}
	o.blocked = blockForget(g.sys) // before anything is opened or taken
	if o.forked {
		return runForked(cmd.Context(), g, o)
	}
	return runAgent(cmd.Context(), g, o, func(path string) error {
		// The service manager, and whoever is served by it, knows the socket.
		if len(o.command) == 0 && g.sys.getenv("JOURNAL_STREAM") == "" {
			fmt.Fprintln(g.sys.stdout, form.set("SSH_AUTH_SOCK", path))
		}
		return nil
	})
}
