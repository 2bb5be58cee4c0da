package main

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/tpm-agent/tpm-agent/internal/socket"
)

// listen gets the agent's socket ready. activated is one that the service
// manager has passed.
func (set *settings) listen(sys system, o serveOptions) (l *socket.Listener, activated bool, err error) {
	l, activated, err = listen(sys, o)
	if err != nil {
		return nil, false, err
	}
	l.Refused = func(uid int) { set.log.Warn("turned away a client of another user", "uid", uid) }
	if err := refuseOwn(set.upstreams, l.Addr().String()); err != nil {
		return nil, false, errors.Join(err, l.Close())
	}
	cleanStale(sys, set.log)
	return l, activated, nil
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
	l, err = makeSocket(sys, o)
	return l, false, err
}

// makeSocket makes the socket that was asked for, or the default one: for a
// command one of its own, so that it works beside an agent that runs already.
func makeSocket(sys system, o serveOptions) (l *socket.Listener, err error) {
	own := len(o.command) > 0 && o.socket == ""
	switch {
	case own && sys.runtimeDir() == "":
		l, err = socket.ListenTemp(sys.tempDir())
	case own:
		l, err = socket.ListenOwn(sys.runtimeDir())
	default:
		path, pathErr := sys.socketPath(o.socket)
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

// cleanStale removes the sockets of agents that were killed, in the place where
// this one's would be. That it cannot is no reason not to start.
func cleanStale(sys system, log *slog.Logger) {
	dir := sys.runtimeDir()
	if dir == "" {
		dir = sys.tempDir()
	}
	removed, err := socket.CleanStale(dir)
	for _, path := range removed {
		log.Info("removed the socket of an agent that was killed", "socket", path)
	}
	if err != nil {
		log.Info("old sockets stay", "cause", err)
	}
}
