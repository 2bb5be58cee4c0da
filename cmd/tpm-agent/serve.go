package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/tpm-agent/tpm-agent/agent"
	"github.com/tpm-agent/tpm-agent/internal/boottime"
	"github.com/tpm-agent/tpm-agent/internal/keydir"
	"github.com/tpm-agent/tpm-agent/internal/prompt"
	"github.com/tpm-agent/tpm-agent/internal/socket"
)

type serveOptions struct {
	socket   string
	keyDirs  []string
	logLevel string
	verbose  bool
	command  []string // to run with the agent; none: serve until told to end
}

func newServeCmd(g *global) *cobra.Command {
	var o serveOptions
	cmd := &cobra.Command{
		Use:   "serve [-- COMMAND [ARG...]]",
		Short: "Run the agent",
		Long:  serveHelp,
		Example: `  tpm-agent serve &                    # for this login
  eval "$(tpm-agent env)"
  tpm-agent serve -- ssh user@host     # for one command
  tpm-agent serve -- bash              # for one shell
  tpm-agent --tpm software serve       # to try it out without a chip
  systemctl --user enable --now tpm-agent.socket`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if dash := cmd.ArgsLenAtDash(); len(args) > 0 && dash != 0 {
				return withHint(usage("unexpected argument %q", args[0]), "a command to run comes after --: tpm-agent serve -- %s", shQuote(args[0]))
			} else if dash == 0 && len(args) == 0 {
				return usage("the command after -- is missing")
			}
			if o.verbose && cmd.Flags().Changed("log-level") {
				return usage("-v is --log-level debug: only one of them can be given")
			}
			o.command = args
			return runServe(cmd, g, o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.socket, "socket", "", "`PATH` of the socket to listen on (default $XDG_RUNTIME_DIR/tpm-agent/agent.sock)")
	f.StringArrayVar(&o.keyDirs, "key-dir", nil, "`DIR`ectory with keys; may be given several times (default ~/.ssh)")
	f.StringVar(&o.logLevel, "log-level", "", "log from this `LEVEL` on: debug, info, warn or error (default info; warn with a COMMAND)")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "the same as --log-level debug")
	mustComplete(cmd, "log-level", "debug", "info", "warn", "error")
	return cmd
}

const serveHelp = `Runs the agent in the foreground: it lists the TPM keys in ~/.ssh and signs with
them for ssh, git and all that asks through its socket. Others than you (and
root) are turned away.

The directories are watched: a key that appears is offered with the next request,
one that vanishes is gone. Certificates beside keys (NAME-cert.pub) are offered
too. The agent starts and lists without a TPM; only signing needs it. While
nobody signs it holds nothing in the TPM and keeps no device open.

With a COMMAND after --, it is run with SSH_AUTH_SOCK set, and the agent ends
when it does, with its exit status (128+n if signal n ended it). Signals are
passed on to it.

A socket from a service manager (systemd socket activation) is used in place of
one of its own. A socket in use by another process is never taken over; one that
a dead process left behind is.

The PIN of a key is asked for by the program that SSH_ASKPASS names, if DISPLAY
or WAYLAND_DISPLAY is set; otherwise on the terminal of the agent.
SSH_ASKPASS_REQUIRE chooses: never uses the terminal only, force the program
only, prefer the program where there is a display. PINs are not remembered.

Signals without a COMMAND:
  SIGTERM, SIGINT  finish the signature in progress, then end
  SIGHUP           read all keys again, and offer again what was removed with
                   ssh-add -d or -D

The log goes to standard error.`

// runServe wires the agent together and runs it.
func runServe(cmd *cobra.Command, g *global, o serveOptions) (err error) {
	addr, err := g.address()
	if err != nil {
		return err
	}
	log, err := newLogger(g.sys, o)
	if err != nil {
		return err
	}
	asking, err := prompt.FromEnviron(g.sys.without())
	if err != nil {
		return &usageError{err}
	}
	dirs, err := g.keyDirs(o.keyDirs)
	if err != nil {
		return err
	}
	if err := harden(); err != nil {
		return err
	}
	signals, done := catchSignals()
	defer done()
	l, activated, err := listen(g.sys, o)
	if err != nil {
		return err
	}
	defer l.Close()
	l.Refused = func(uid int) { log.Warn("turned away a client of another user", "uid", uid) }
	index, err := keydir.Open(dirs, func(p keydir.Problem) { logProblem(log, p) })
	if err != nil {
		return fmt.Errorf("reading %s: %w", strings.Join(dirs, ", "), err)
	}
	tpm := openTPM(addr)
	defer func() { err = errors.Join(err, tpm.Close(), index.Close()) }()
	ids := &identities{index: index, tpm: tpm, software: addr.Software(), log: log}
	a := agent.New(agent.Config{
		Source:   ids,
		KeyFile:  ids.keyFile,
		Prompter: prompt.New(asking),
		Log:      log,
		Clock:    boottime.New(),
	})
	s := &server{
		sys: g.sys, agent: a, index: index, listener: l, log: log,
		path: l.Addr().String(), announce: len(o.command) == 0 && !activated, signals: signals,
	}
	return s.run(cmd.Context(), o.command)
}

// listen takes the socket that the service manager passed, or makes one.
func listen(sys system, o serveOptions) (l *socket.Listener, activated bool, err error) {
	l, err = socket.Inherited()
	if err != nil {
		return nil, false, fmt.Errorf("taking the socket from the service manager: %w", err)
	}
	switch {
	case l != nil && o.socket != "":
		err = usage("--socket cannot be used when the service manager passes a socket")
	case l != nil && len(o.command) > 0:
		err = usage("a command cannot be run when the service manager passes a socket")
	case l != nil:
		return l, true, nil
	}
	if err != nil {
		return nil, false, errors.Join(err, l.Close())
	}
	path, err := sys.socketPath(o.socket)
	if err != nil {
		return nil, false, err
	}
	l, err = socket.Listen(path)
	if err != nil {
		return nil, false, fmt.Errorf("starting the agent: %w", err)
	}
	return l, false, nil
}

// harden keeps PINs out of core files, and other processes of the user out of
// this one's memory. Only the soft limit is set: a COMMAND may raise it again.
func harden() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("keeping others out of the agent's memory: %w", err)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &limit); err != nil {
		return fmt.Errorf("reading the limit for core files: %w", err)
	}
	limit.Cur = 0
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &limit); err != nil {
		return fmt.Errorf("turning off core files: %w", err)
	}
	return nil
}

// newLogger writes lines of text to stderr. The journal puts the time before
// each line itself.
func newLogger(sys system, o serveOptions) (*slog.Logger, error) {
	levels := map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}
	level, ok := levels[o.logLevel]
	switch {
	case ok:
	case o.logLevel == "" && len(o.command) > 0:
		level = slog.LevelWarn // its terminal is the command's
	case o.logLevel == "":
		level = slog.LevelInfo
	default:
		return nil, usage("--log-level %s: must be debug, info, warn or error", plain(o.logLevel))
	}
	if o.verbose {
		level = slog.LevelDebug
	}
	options := &slog.HandlerOptions{Level: level}
	if sys.getenv("JOURNAL_STREAM") != "" {
		options.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey && len(groups) == 0 {
				return slog.Attr{}
			}
			return a
		}
	}
	return slog.New(slog.NewTextHandler(sys.stderr, options)), nil
}

// logProblem names a file that cannot be used. That the same key is there twice
// does no harm, and neither does a directory that is not there yet.
func logProblem(log *slog.Logger, p keydir.Problem) {
	level := slog.LevelWarn
	if errors.Is(p.Err, keydir.ErrDuplicate) || errors.Is(p.Err, os.ErrNotExist) {
		level = slog.LevelInfo
	}
	log.Log(context.Background(), level, "not offered", "file", p.Path, "cause", p.Err)
}
