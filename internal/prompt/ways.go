package prompt

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/tpm-agent/tpm-agent/agent"
)

// Way names a way of asking.
type Way string

// The ways of asking.
const (
	Pinentry Way = "pinentry" // the dialog program of GnuPG
	Askpass  Way = "askpass"  // the program that SSH_ASKPASS names
	Terminal Way = "terminal" // of the client that asks, or the agent's own
	Systemd  Way = "systemd"  // systemd-ask-password
)

// allWays are the ways of asking, in the order in which they are tried.
func allWays() []Way { return []Way{Pinentry, Askpass, Terminal, Systemd} }

// ParseWays reads a list of ways, separated by commas: the order in which they
// are tried. "none" is an empty list. "auto" is nil: which ways there are is
// left to the environment.
func ParseWays(list string) ([]Way, error) {
	switch list {
	case "auto":
		return nil, nil
	case "none":
		return []Way{}, nil
	}
	var ways []Way
	for name := range strings.SplitSeq(list, ",") {
		way := Way(name)
		switch {
		case !slices.Contains(allWays(), way):
			return nil, fmt.Errorf("%q is no way to ask: they are pinentry, askpass, terminal and systemd; or auto, or none", name)
		case slices.Contains(ways, way):
			return nil, fmt.Errorf("%s is named twice", name)
		}
		ways = append(ways, way)
	}
	return ways, nil
}

// order is the one in which the ways are tried if none was asked for: who sets
// SSH_ASKPASS_REQUIRE wants that program before all others.
func order(require Require) []Way {
	if require == Prefer || require == Force {
		return []Way{Askpass, Pinentry, Terminal, Systemd}
	}
	return allWays()
}

// question is what somebody is asked, or told.
type question struct {
	agent.Question
	text  string // all of it, in lines
	retry bool   // the last answer was wrong, as text says
	first string // the text of a first time
}

// A way asks. Each method returns an *unusableError if nobody could be asked.
type way interface {
	// pin asks for a PIN.
	pin(ctx context.Context, q question) ([]byte, error)
	// lastTry asks for an explicit go. Only nil is one.
	lastTry(ctx context.Context, q question) error
	// confirm asks for consent, with the longer grants if it can.
	confirm(ctx context.Context, q question) (agent.Grant, error)
	// inform tells something, until it is read or ctx ends.
	inform(ctx context.Context, q question) error
}

// unusableError says that nobody was asked in this way, because it cannot be
// used here and now. The next way may do.
type unusableError struct {
	cause error
}

func (e *unusableError) Error() string { return e.cause.Error() }
func (e *unusableError) Unwrap() error { return e.cause }

// unusable is an unusableError of a formatted cause.
func unusable(format string, args ...any) error {
	return &unusableError{fmt.Errorf(format, args...)}
}

// try asks in one way after the other, until somebody was asked.
func (p *Prompter) try(ctx context.Context, ask func(way) error) error {
	var tried noWayError
	for _, name := range p.options.Ways {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		err := ask(p.ways[name])
		var passed *unusableError
		if !errors.As(err, &passed) {
			return err
		}
		p.options.Log.Debug("passed over a way to ask", "way", string(name), "cause", passed)
		tried.ways = append(tried.ways, name)
		tried.causes = append(tried.causes, passed)
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	return &tried
}

// noWayError is that nobody could be asked in any way.
type noWayError struct {
	ways   []Way
	causes []error // why not, for each of them
}

// Error names each way with its cause, and what to do.
func (e *noWayError) Error() string {
	if len(e.ways) == 0 {
		return agent.ErrNoPrompt.Error() + ": serve --prompt none asks nobody"
	}
	var b strings.Builder
	b.WriteString(agent.ErrNoPrompt.Error())
	for i, way := range e.ways {
		fmt.Fprintf(&b, "; %s: %v", way, e.causes[i])
	}
	if hint := e.hint(); hint != "" {
		b.WriteString("; " + hint)
	}
	return b.String()
}

// Unwrap returns agent.ErrNoPrompt and the causes.
func (e *noWayError) Unwrap() []error { return append([]error{agent.ErrNoPrompt}, e.causes...) }

// hint says what to set, for the ways that were tried.
func (e *noWayError) hint() string {
	var hints []string
	if slices.Contains(e.ways, Pinentry) || slices.Contains(e.ways, Askpass) {
		hints = append(hints, "DISPLAY or WAYLAND_DISPLAY for the agent, with a pinentry or SSH_ASKPASS")
	}
	if slices.Contains(e.ways, Terminal) {
		hints = append(hints, "a terminal in which the client runs and nothing else reads")
	}
	if len(hints) == 0 {
		return ""
	}
	return "what helps: " + strings.Join(hints, ", or ")
}
