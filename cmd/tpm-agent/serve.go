package main

import (
	"github.com/spf13/cobra"

	"github.com/tpm-agent/tpm-agent/internal/cli"
	"github.com/tpm-agent/tpm-agent/internal/daemon"
	"github.com/tpm-agent/tpm-agent/internal/term"
)

func newServeCmd(sys *term.System) *cobra.Command {
	var o daemon.Options
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
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Command, o.Dash = args, cmd.ArgsLenAtDash()
			return daemon.Run(cmd.Context(), sys, o)
		},
	}
	f := cmd.Flags()
	o.Given, o.Flags = f.Changed, f.NFlag
	f.StringVar(&o.Socket, "socket", "", "listen on a socket at `PATH` (default\n$XDG_RUNTIME_DIR/tpm-agent/agent.sock)")
	f.StringArrayVar(&o.KeyDirs, "key-dir", nil, "read keys from `DIR` (default ~/.ssh; repeatable)")
	cli.CompleteDir(cmd, "key-dir")
	f.StringArrayVar(&o.Upstreams, "upstream", nil, "also offer the keys of the agent at `SOCKET`\n(repeatable)")
	cli.Optional(f, &o.Lifetime, "lifetime", "t", "forget keys that are added without a lifetime\nafter this `TIME`: 90 (seconds), 10m, 1h30m, 2w")
	f.BoolVar(&o.NoSoftwareKeys, "no-software-keys", false, "refuse to keep private keys from ssh-add in memory")
	f.BoolVar(&o.AllowSHA1, "allow-sha1", false, "sign with RSA and SHA-1 if a client asks for it")
	f.StringVar(&o.Prompt, "prompt", "auto", "ask in `WAYS`, such as pinentry,terminal, or none;\nsee tpm-agent man serve")
	f.StringVar(&o.PromptTimeout, "prompt-timeout", "2m", "close a question after this `TIME`")
	f.StringArrayVar(&o.PINTTL, "pin-ttl", nil, "remember PINs for `[KEY=]TTL`, such as 15m or\nid_rsa=8h; session: until told to forget\n(repeatable)")
	f.StringArrayVar(&o.PINFrom, "pin-from", nil, "take the PIN of a key from a source, `KEY=SOURCE`:\nfd:N, file:PATH or credential:NAME (repeatable)")
	f.BoolVar(&o.Confirm, "confirm", false, "ask before each use of a key that the agent holds")
	cli.Optional(f, &o.LogLevel, "log-level", "", "log from this `LEVEL` on: debug, info, warn or error\n(default info; warn with a COMMAND)")
	f.BoolVarP(&o.Verbose, "verbose", "v", false, "same as --log-level debug")
	f.BoolVar(&o.Fork, "fork", false, "run in the background; print what to run")
	f.BoolVar(&o.Forked, "forked", false, "")
	f.BoolVarP(&o.Kill, "kill", "k", false, "end the agent whose process ID is in SSH_AGENT_PID")
	cli.ShellFlags(cmd, &o.Form, "print commands ")
	cli.Hide(cmd, "forked")
	cli.Complete(cmd, "log-level", "debug", "info", "warn", "error")
	cli.Complete(cmd, "prompt", "auto", "none", "pinentry", "askpass", "terminal", "systemd")
	cli.Complete(cmd, "pin-ttl", "15m", "8h", "session")
	cli.Complete(cmd, "pin-from lifetime prompt-timeout")
	return cmd
}

const serveHelp = `Runs the agent in the foreground, with the TPM keys in ~/.ssh, keys that you
add with ssh-add, and the keys of --upstream agents.

--fork runs it in the background and prints what the shell must run, as
ssh-agent does. With a COMMAND it runs until the command ends. Details:
tpm-agent man serve.`
