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
  eval "$(tpm-agent serve --fork)"     # the same in one line
  eval "$(tpm-agent serve -k)"         # and its end
  tpm-agent serve -- ssh user@host     # for one command
  tpm-agent serve -- bash              # for one shell
  tpm-agent --tpm software serve       # to try it out without a chip
  systemctl --user enable --now tpm-agent.socket`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.check(cmd, args); err != nil {
				return err
			}
			return runServe(cmd, g, o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.socket, "socket", "", "`PATH` of the socket to listen on (default $XDG_RUNTIME_DIR/tpm-agent/agent.sock; with a COMMAND agent.PID.sock there)")
	f.StringArrayVar(&o.keyDirs, "key-dir", nil, "`DIR`ectory with keys; may be given several times (default ~/.ssh)")
	completeDir(cmd, "key-dir")
	f.StringArrayVar(&o.upstreams, "upstream", nil, "`SOCKET` of another agent, whose keys are offered behind our own; may be given several times")
	f.StringVarP(&o.life, "lifetime", "t", "", "`LIFE`time of keys that are added without one: 90, 10m, 1h30m, 2w (default for ever)")
	f.BoolVar(&o.noSoftwareKeys, "no-software-keys", false, "refuse private keys that ssh-add would have kept in memory")
	f.BoolVar(&o.allowSHA1, "allow-sha1", false, "sign with RSA and SHA-1 for old clients that ask for nothing better")
	f.StringVar(&o.prompt, "prompt", "auto", "how to ask for PINs and consent: `WAYS` to try in this order, of pinentry, askpass, terminal and systemd, with commas; auto: all of them; or none")
	f.StringVar(&o.promptTimeout, "prompt-timeout", "2m", "how long a dialog may stay without an answer: `TIME` as for -t")
	f.StringArrayVar(&o.pinTTL, "pin-ttl", nil, "remember PINs for this time, or until the agent is told to forget: `[KEY=]TTL|session`; may be given several times (default not at all)")
	f.StringArrayVar(&o.pinFrom, "pin-from", nil, "take the PIN of a key from a descriptor, a file or a systemd credential: `KEY=SOURCE`; may be given several times")
	f.BoolVar(&o.confirm, "confirm", false, "ask before each use of each key that the agent holds itself")
	f.StringVar(&o.logLevel, "log-level", "", "log from this `LEVEL` on: debug, info, warn or error (default info; warn with a COMMAND)")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "the same as --log-level debug")
	f.BoolVar(&o.fork, "fork", false, "run in the background, once it is ready, and print what the shell must run")
	f.BoolVar(&o.forked, "forked", false, "")
	f.BoolVarP(&o.kill, "kill", "k", false, "end the agent that SSH_AGENT_PID names, and print what the shell must run")
	o.form.flags(cmd, "print it ")
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

const serveHelp = `Runs the agent in the foreground: it lists the TPM keys in ~/.ssh and signs with
them for ssh, git and all that asks through its socket. Others than you (and
root) are turned away.

The directories are watched: a key that appears is offered with the next request,
one that vanishes is gone. Certificates beside keys (NAME-cert.pub) are offered
too. The agent starts and lists without a TPM; only signing needs it. While
nobody signs it holds nothing in the TPM and keeps no device open. Which storage
key of the TPM a key was loaded under is remembered in the file
~/.local/state/tpm-agent/storage-keys, so that a TPM that was cleared or exchanged
is noticed; a different storage key is refused.

What ssh-add adds is kept in memory. ssh-add -d and -D remove such keys for good;
of the keys in the directories they remove nothing but the offer: the files stay
on disk, and are offered again after SIGHUP or a restart. -t sets how long keys
live that are added without a lifetime; keys in the directories do not expire.

With --upstream, the keys of other agents are offered behind our own, and what is
added that this agent cannot hold goes to the first of them that takes it. An
agent that is not there, or hangs, holds up nobody who uses our own keys. The
agent that SSH_AUTH_SOCK names is not used unless it is given.

With --fork the agent runs in the background: this command ends when the agent
can be used, and prints the commands that set SSH_AUTH_SOCK and SSH_AGENT_PID,
as ssh-agent does. The agent has no terminal of its own then, and its log goes to
syslog (facility auth), or nowhere if there is none.
With -k the agent that SSH_AGENT_PID names is ended; one that is not your own
tpm-agent gets no signal.

With a COMMAND after --, it is run with SSH_AUTH_SOCK and SSH_AGENT_PID set, and
the agent ends when it does, with its exit status (128+n if signal n ended it).
Its socket is one of its own, agent.PID.sock, beside that of an agent that runs
already; without XDG_RUNTIME_DIR in a private directory below TMPDIR.

A socket from a service manager (systemd socket activation) is used in place of
one of its own. A socket in use by another process is never taken over; one that
a dead process left behind is, and old ones of COMMANDs are removed.

The PIN of a key, and consent to its use if it was added with -c, are asked for in
the first of these ways that can be used when the question comes (--prompt names
others, or another order):
  pinentry  the dialog program of GnuPG, the one that gpg-agent uses: in a window
            where there is a display, else on the terminal of the client
  askpass   the program that SSH_ASKPASS names, where there is a display.
            SSH_ASKPASS_REQUIRE=prefer puts it first, force also without a
            display, and never leaves it out
  terminal  that in which the client runs, if nothing else reads there; else the
            agent's own
  systemd   systemd-ask-password, for the agents of services and of root
The display is that of the agent's environment, or that of the client where the
agent knows none. Somebody who was asked has answered: no other way is tried after
a no, nor when nobody answered within --prompt-timeout. A request that came over a
forwarded connection is never asked about on the terminal of its client.

A question says what the signature is for: a login, and to which host, if ssh has
proven that to the agent (OpenSSH from 8.9 on); a file, a commit or what namespace
a signature has; whom a certificate is for. Hosts have the names that they have in
known_hosts, in ~/.ssh and /etc/ssh; hashed ones are compared with what ssh was
told, and a host without a name is shown by its key. It says from where a request
was FORWARDED, and which programs ask, by the names that they give themselves.

ssh-add -x locks the agent, and -X unlocks it.

PINs are not remembered, unless --pin-ttl says for how long: TTL is for all keys,
KEY=TTL for one, KEY=off for none of its. A KEY is a fingerprint (SHA256:...), the
path of a key file or its name there, with .tpm or without. A TTL is a time, 15m
or 8h, or "session": until the agent is made to forget. That ends the others, too:
tpm-agent lock, ssh-add -x, SIGUSR1, suspend and screen lock (where systemd-logind
tells of them), and for one key that it was removed or its PIN is wrong now.
tpm-agent unlock gives a PIN ahead of its use.

A service has nobody to ask. --pin-from KEY=SOURCE takes the PIN of a key from

  file:PATH        a file of yours (or root's) that nobody else may read
  credential:NAME  what systemd was told to load: LoadCredential=NAME:PATH
  fd:N             the first line of what comes through descriptor N, 0 or from 3
                   on; it is read at the start, and its PIN kept until the end

A file is read when its PIN is needed, and not kept. What was wrong is not tried
again before the file has changed: the user is asked, if there is one.

With --confirm the user is asked before each use of each key that the agent holds
itself, in the TPM or in memory, as for keys that were added with -c. Keys of
upstream agents are theirs: they ask, or do not.

Signals:
  SIGTERM, SIGINT  take questions away, finish the signature in progress, then end
  SIGHUP           read all keys again, and offer again what was removed with
                   ssh-add -d or -D
  SIGUSR1          forget all keys that were added, all PINs and all consent

A COMMAND gets all signals passed on, but for SIGUSR1; it decides when to end. One
that suspends itself (a shell with suspend, ssh with ~^Z) suspends the agent, too.

The log goes to standard error. Nobody waits for it: lines that are not taken are
kept, up to 1000, and those behind them left out and counted.`

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
