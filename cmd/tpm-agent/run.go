package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"

	"github.com/tpm-agent/tpm-agent/agent"
	"github.com/tpm-agent/tpm-agent/internal/boottime"
	"github.com/tpm-agent/tpm-agent/internal/keydir"
	"github.com/tpm-agent/tpm-agent/internal/prompt"
	"github.com/tpm-agent/tpm-agent/internal/tcti"
)

// runAgent wires the agent together and runs it. ready is called with the path
// of the socket when the agent can be used, unless the service manager has
// passed the socket.
func runAgent(ctx context.Context, g *global, o serveOptions, ready func(path string) error) (err error) {
	set, err := g.settings(o)
	if err != nil {
		return err
	}
	if o.forked { // nobody reads its standard error any more
		defer func() {
			if err != nil {
				set.log.Error("ended", "cause", err)
			}
		}()
	}
	if err := harden(); err != nil {
		return err
	}
	if err := set.given.hold(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, set.given.wipe()) }()
	signals, done := catchSignals(o.blocked)
	defer done()
	l, activated, err := set.listen(g.sys, o)
	if err != nil {
		return err
	}
	defer l.Close()
	keys, err := set.openKeys()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, keys.close()) }()
	forgetting, err := newForgetting(o.blocked)
	if err != nil {
		return err
	}
	defer forgetting.close()
	remembered := make(chan struct{})
	config := set.agentConfig(g.sys, o, keys)
	config.Before = forgetting.check
	config.Remembering = sync.OnceFunc(func() { close(remembered) })
	a := agent.New(config)
	forgetting.start(a.Forget)
	defer watchLogin(ctx, g.sys, set.log, remembered, a.ForgetPINs)()
	s := &server{
		sys: g.sys, agent: a, index: keys.index, listener: l, log: set.log,
		path: l.Addr().String(), tell: ready, signals: signals,
	}
	if activated {
		s.tell = func(string) error { return nil }
	}
	return s.run(ctx, o.command)
}

// settings are the options and the environment, read and found to be good.
type settings struct {
	addr      tcti.Address
	log       *slog.Logger
	asking    prompt.Options
	dirs      []string
	upstreams []agent.Upstream
	lives     pinLives
	given     givenPINs
	clients   int // at a time
}

func (g *global) settings(o serveOptions) (set settings, err error) {
	if set.addr, err = g.address(); err != nil {
		return set, err
	}
	if set.log, err = newLogger(g.sys, o); err != nil {
		return set, err
	}
	if set.asking, err = o.asking.options(g.sys, set.log); err != nil {
		return set, err
	}
	if set.dirs, err = g.keyDirs(o.keyDirs); err != nil {
		return set, err
	}
	if set.upstreams, err = upstreams(o.upstreams); err != nil {
		return set, err
	}
	if set.lives, err = parsePINLives(o.pinTTL); err != nil {
		return set, err
	}
	if set.given, err = g.sys.parseGivenPINs(o.pinFrom); err != nil {
		return set, err
	}
	if set.clients, err = maxConns(len(set.upstreams)); err != nil {
		return set, err
	}
	if o.forked {
		err = errors.Join(set.leaveDirectory(g.sys), set.given.withoutDescriptors())
	}
	return set, err
}

// openKeys reads the key directories. The TPM is opened when it is needed.
func (set *settings) openKeys() (*identities, error) {
	index, err := keydir.Open(set.dirs, func(p keydir.Problem) { logProblem(set.log, p) })
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", strings.Join(set.dirs, ", "), err)
	}
	set.lives.keys.logUnmatched(set.log, "--pin-ttl", index.Entries())
	set.given.keys.logUnmatched(set.log, "--pin-from", index.Entries())
	return &identities{
		index: index, tpm: openTPM(set.addr), software: set.addr.Software(),
		log: set.log, memory: newMemory(set.addr, set.log),
	}, nil
}

// agentConfig is what the options and the keys make of the agent.
func (set *settings) agentConfig(sys system, o serveOptions, keys *identities) agent.Config {
	return agent.Config{
		Source:         keys,
		KeyFile:        keys.keyFile,
		HostName:       sys.hostNames(),
		Prompter:       prompt.New(set.asking),
		Log:            set.log,
		Clock:          boottime.New(),
		Upstreams:      set.upstreams,
		Lifetime:       o.lifetime,
		NoSoftwareKeys: o.noSoftwareKeys,
		AllowSHA1:      o.allowSHA1,
		PINLife:        set.lives.of,
		GivenPIN:       set.given.of,
		ConfirmAll:     o.confirm,
		MaxConns:       set.clients,
	}
}
