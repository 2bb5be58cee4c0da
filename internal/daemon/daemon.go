// Package daemon assembles the agent and runs it: sources of keys and PINs, the
// socket, signals, the log, a command, and the fork into the background.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"golang.org/x/sys/unix"

	"github.com/tpm-agent/tpm-agent/agent"
	"github.com/tpm-agent/tpm-agent/internal/boottime"
	"github.com/tpm-agent/tpm-agent/internal/control"
	"github.com/tpm-agent/tpm-agent/internal/keydir"
	"github.com/tpm-agent/tpm-agent/internal/knownhosts"
	"github.com/tpm-agent/tpm-agent/internal/logind"
	"github.com/tpm-agent/tpm-agent/internal/parents"
	"github.com/tpm-agent/tpm-agent/internal/peer"
	"github.com/tpm-agent/tpm-agent/internal/pinsource"
	"github.com/tpm-agent/tpm-agent/internal/prompt"
	"github.com/tpm-agent/tpm-agent/internal/socket"
	"github.com/tpm-agent/tpm-agent/internal/tcti"
	"github.com/tpm-agent/tpm-agent/internal/term"
	"github.com/tpm-agent/tpm-agent/internal/upstream"
	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// Options are the options of serve, most of them as they were typed.
type Options struct {
	Socket         string
	KeyDirs        []string
	Upstreams      []string
	Lifetime       *string
	NoSoftwareKeys bool
	AllowSHA1      bool
	Prompt         string
	PromptTimeout  string
	PINTTL         []string
	PINFrom        []string
	Confirm        bool
	LogLevel       *string
	Verbose        bool
	Form           term.ShellForm
	Fork, Forked   bool // Forked: this is the process that --fork has started
	Kill           bool
	Command        []string // to run with the agent; none: serve until a signal
	Dash           int      // how many arguments came before --; -1: there is none
	Given          func(flag string) bool
	Flags          func() int // how many were given
}

// daemon is one run of the agent, with its options read.
type daemon struct {
	Options
	sys       *term.System
	addr      tcti.Address
	log       *slog.Logger
	prompts   prompts
	dirs      []string
	upstreams []upstream.Agent
	lifetime  time.Duration
	lives     pinLives
	given     givenPINs
	clients   int // at a time

	tell       func(path string) error // that the agent can be used
	signals    chan os.Signal
	forgetting *forgetting
	keys       *source
	agent      *agent.Agent
	listener   *socket.Listener
	path       string // of the socket
}

// Run runs the agent until a signal or the end of its command, or does what else
// the options ask for.
func Run(ctx context.Context, sys *term.System, o Options) error {
	if err := o.check(); err != nil {
		return err
	}
	shell, err := o.Form.Shell(sys)
	switch {
	case err != nil:
		return err
	case o.Kill:
		return kill(sys, shell)
	case o.Fork && !o.Forked:
		return fork(sys, shell)
	}
	withoutPreemption(sys)
	d := &daemon{Options: o, sys: sys}
	if o.Forked {
		parent, err := parentPipe()
		if err != nil {
			return err
		}
		defer parent.Close()
		d.tell = func(path string) error { return leave(parent, path) }
	} else {
		d.tell = func(path string) error {
			// The service manager, and its clients, know the socket.
			if len(o.Command) == 0 && sys.Getenv("JOURNAL_STREAM") == "" {
				fmt.Fprintln(sys.Stdout, shell.Set("SSH_AUTH_SOCK", path))
			}
			return nil
		}
	}
	return d.run(ctx)
}

// check refuses options that do not go together.
func (o *Options) check() error {
	switch command := o.Command; {
	case len(command) > 0 && o.Dash != 0:
		return term.Hint(term.Usage("unexpected argument %q", command[0]), "a command to run comes after --: tpm-agent serve -- %s", term.Quote(command[0]))
	case o.Dash == 0 && len(command) == 0:
		return term.Usage("the command after -- is missing")
	case o.Kill && len(command) > 0:
		return term.Usage("-k ends an agent: no command can be run")
	case o.Kill && o.servesToo():
		return term.Usage("-k ends an agent: of the other options it takes -s, -c and --fish")
	case o.Fork && len(command) > 0:
		return term.Usage("--fork cannot be used with a command: the agent ends with that")
	case o.Form.Asked() && len(command) > 0:
		return term.Usage("-s, -c and --fish say how to print where the agent is: with a command, nothing is printed")
	case o.Verbose && o.LogLevel != nil:
		return term.Usage("-v is --log-level debug: only one of them can be given")
	}
	return nil
}

// servesToo reports whether an option was given that -k does not take.
func (o *Options) servesToo() bool {
	others := o.Flags() - 1
	for _, name := range []string{"sh", "csh", "fish"} {
		if o.Given(name) {
			others--
		}
	}
	return others > 0
}

// run puts the agent together and serves.
func (d *daemon) run(ctx context.Context) (err error) {
	if err := d.read(); err != nil {
		return err
	}
	if d.Forked { // its standard error is not read any more
		defer func() {
			if err != nil {
				d.log.Error("ended", "cause", err)
			}
		}()
	}
	if err := pinsource.Harden(); err != nil {
		return err
	}
	if err := d.given.hold(ctx); err != nil {
		return err
	}
	defer d.given.wipe()
	defer d.catchSignals()()
	if err := d.listen(); err != nil {
		return err
	}
	defer d.listener.Close()
	if err := d.openKeys(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.keys.close()) }()
	remembered := make(chan struct{})
	keyring := agent.NewKeyring(d.config(sync.OnceFunc(func() { close(remembered) })))
	d.agent = agent.New(keyring, control.Extensions(keyring, d.keys.keyFile))
	d.forgetting.forget = d.agent.Forget
	defer d.watchLogin(ctx, remembered)()
	return d.serve(ctx)
}

// read reads the options and the environment.
func (d *daemon) read() (err error) {
	if d.addr, err = d.sys.Address(); err != nil {
		return err
	}
	if d.log, err = newLogger(d.sys, &d.Options); err != nil {
		return err
	}
	if d.Lifetime != nil {
		if d.lifetime, err = term.ParseLifetime(*d.Lifetime); err != nil {
			return term.Usage("-t: %w", err)
		}
	}
	if err := d.readPrompts(); err != nil {
		return err
	}
	if d.dirs, err = d.sys.KeyDirs(d.KeyDirs); err != nil {
		return err
	}
	if d.upstreams, err = readUpstreams(d.Upstreams); err != nil {
		return err
	}
	if d.lives, err = parsePINLives(d.PINTTL); err != nil {
		return err
	}
	if d.given, err = parseGivenPINs(d.sys, d.PINFrom); err != nil {
		return err
	}
	if d.clients, err = maxConns(len(d.upstreams)); err != nil || !d.Forked {
		return err
	}
	return errors.Join(d.leaveDirectory(), d.given.withoutDescriptors())
}

// leaveDirectory makes the options independent of the working directory.
func (d *daemon) leaveDirectory() (err error) {
	if home := d.sys.Getenv("HOME"); !filepath.IsAbs(home) {
		return term.Usage("HOME=%s is not an absolute path", term.Plain(home))
	}
	d.prompts.terminal = ""
	// A plain name is looked up in PATH, and stays.
	if strings.ContainsRune(d.prompts.askpass, filepath.Separator) {
		if d.prompts.askpass, err = filepath.Abs(d.prompts.askpass); err != nil {
			return err
		}
	}
	d.addr, err = d.addr.Abs()
	return err
}

// openKeys reads the key directories. The TPM is opened when it is needed.
func (d *daemon) openKeys() error {
	index, err := keydir.Open(d.dirs, func(p keydir.Problem) {
		level := slog.LevelWarn
		if errors.Is(p.Err, keydir.ErrDuplicate) || errors.Is(p.Err, os.ErrNotExist) {
			level = slog.LevelInfo // a second copy does no harm, and a directory may be made later
		}
		d.log.Log(context.Background(), level, "not offered", "file", p.Path, "cause", p.Err)
	})
	if err != nil {
		return fmt.Errorf("reading %s: %w", strings.Join(d.dirs, ", "), err)
	}
	d.lives.keys.logUnmatched(d.log, "--pin-ttl", index.Entries())
	d.given.keys.logUnmatched(d.log, "--pin-from", index.Entries())
	d.keys = &source{
		index: index, tpm: tpmkey.New(d.addr.Open), software: d.addr.Software(),
		log: d.log, book: parents.NewBook(parents.Default(), d.addr, d.log),
	}
	return nil
}

// config is the configuration of the agent, from the options and the keys.
func (d *daemon) config(remembering func()) agent.Config {
	return agent.Config{
		Sources:        []agent.Source{d.keys},
		HostName:       hostNames(d.sys),
		Prompter:       prompt.New(d.prompts.ways(), d.log),
		Log:            d.log,
		Clock:          boottime.New(),
		Upstreams:      d.upstreams,
		Lifetime:       d.lifetime,
		NoSoftwareKeys: d.NoSoftwareKeys,
		AllowSHA1:      d.AllowSHA1,
		PINLife:        d.lives.of,
		GivenPIN:       d.given.of,
		ConfirmAll:     d.Confirm,
		MaxConns:       d.clients,
		Before:         d.forgetting.check,
		Remembering:    remembering,
	}
}

// watchLogin makes the agent forget PINs when the machine is about to sleep and
// when the user's screen gets locked. It begins when something is remembered: until
// then the agent stays off the bus, and no machine waits for it before it sleeps.
// stop returns when it has ended.
func (d *daemon) watchLogin(ctx context.Context, remembered <-chan struct{}) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var watching sync.WaitGroup
	watching.Go(func() {
		select {
		case <-ctx.Done():
			return
		case <-remembered:
		}
		o := logind.Options{Address: d.sys.Getenv("DBUS_SYSTEM_BUS_ADDRESS"), UID: os.Getuid(), Log: d.log}
		err := logind.Watch(ctx, o, func(reason string) {
			d.log.Info("PINs and consent forgotten", "reason", reason, "pins", d.agent.ForgetPINs(nil))
		})
		if err != nil {
			d.log.Warn("PINs are not forgotten when the machine sleeps or the screen is locked", "cause", err)
		}
	})
	return func() {
		cancel()
		watching.Wait()
	}
}

// hostNames returns a function that looks up the name of a host for a prompt, in
// the files in which ssh keeps them, or nil if there are none. The files are read
// each time: prompts are rare, and new hosts are not.
func hostNames(sys *term.System) func(key ssh.PublicKey, peer peer.Peer) string {
	files, err := sys.KnownHosts(nil)
	if err != nil {
		return nil
	}
	dir := filepath.Dir(files[0])
	return func(key ssh.PublicKey, peer peer.Peer) string {
		guesses := knownhosts.Guesses(arguments(peer.PID), filepath.Dir(dir), filepath.Join(dir, "config"), "/etc/ssh/ssh_config")
		name, _ := knownhosts.NameOf(files, key, guesses...)
		return name
	}
}

// arguments returns those that a process was started with, as far as they are
// known and not too many: the command that ssh runs on the host comes last.
func arguments(pid int) []string {
	if pid <= 0 {
		return nil
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return nil
	}
	defer f.Close()
	line, err := io.ReadAll(io.LimitReader(f, 4096))
	if err != nil || len(line) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(line), "\x00"), "\x00")
}

// listen takes the socket that the service manager passed, or makes one.
func (d *daemon) listen() error {
	l, err := socket.Inherited()
	if err != nil {
		return fmt.Errorf("taking the socket from the service manager: %w", err)
	}
	switch {
	case l != nil && d.Socket != "":
		err = term.Usage("--socket cannot be used when the service manager passes a socket")
	case l != nil && len(d.Command) > 0:
		err = term.Usage("a command cannot be run when the service manager passes a socket")
	case l != nil:
		d.tell = func(string) error { return nil }
	default:
		if l, err = d.makeSocket(); err != nil {
			return err
		}
	}
	if err == nil {
		err = refuseOwn(d.upstreams, l.Addr().String())
	}
	if err != nil {
		return errors.Join(err, l.Close())
	}
	l.Refused = func(uid int) { d.log.Warn("turned away a client of another user", "uid", uid) }
	d.listener, d.path = l, l.Addr().String()
	d.cleanStale()
	return nil
}

// makeSocket makes the socket that was asked for, or the default one. A command has
// one of its own, so that it works beside an agent that runs already.
func (d *daemon) makeSocket() (l *socket.Listener, err error) {
	own := len(d.Command) > 0 && d.Socket == ""
	switch {
	case own && d.sys.RuntimeDir() == "":
		l, err = socket.ListenTemp(d.sys.TempDir())
	case own:
		l, err = socket.ListenOwn(d.sys.RuntimeDir())
	default:
		path, pathErr := d.sys.SocketPath(d.Socket)
		if pathErr != nil {
			return nil, pathErr
		}
		l, err = socket.Listen(path)
	}
	if err != nil {
		return nil, fmt.Errorf("starting the agent: %w", err)
	}
	return l, nil
}

// cleanStale removes the sockets of agents that were killed, in the place where this
// one's would be. A failure is no reason not to start.
func (d *daemon) cleanStale() {
	dir := d.sys.RuntimeDir()
	if dir == "" {
		dir = d.sys.TempDir()
	}
	removed, err := socket.CleanStale(dir)
	for _, path := range removed {
		d.log.Info("removed the socket of an agent that was killed", "socket", path)
	}
	if err != nil {
		d.log.Info("old sockets stay", "cause", err)
	}
}

const (
	// mostConns is how many clients are served at a time if descriptors do not
	// limit them.
	mostConns = 4096

	// keptFiles are descriptors that clients must leave: for key files and
	// their directories, the TPM, prompts, and what the runtime has open.
	keptFiles = 32
)

// maxConns returns how many clients the limit of open files leaves room for, if
// each has a connection to each upstream agent as well. Go has raised the soft
// limit to the hard one by now.
func maxConns(upstreams int) (int, error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("reading the limit of open files: %w", err)
	}
	files := int(min(limit.Cur, 1<<20))
	return max(1, min(mostConns, (files-min(keptFiles, files/2))/(1+upstreams))), nil
}
