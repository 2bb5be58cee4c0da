package prompt

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/tpm-agent/tpm-agent/internal/ask"
	"github.com/tpm-agent/tpm-agent/internal/prompt/askpass"
	"github.com/tpm-agent/tpm-agent/internal/prompt/pinentry"
	"github.com/tpm-agent/tpm-agent/internal/prompt/systemd"
	"github.com/tpm-agent/tpm-agent/internal/prompt/tty"
	"github.com/tpm-agent/tpm-agent/internal/prompt/way"
)

// all returns all ways to ask, in the order in which they are tried.
func (o Options) all() []way.Way {
	s := way.Settings{Environ: o.Environ, Timeout: o.Timeout, Grace: o.Grace}
	terminals := tty.New(s, o.Terminal)
	ways := []way.Way{
		pinentry.New(s, terminals),
		askpass.New(s, o.Askpass, o.Require),
		terminals,
		systemd.New(s),
	}
	if o.Require == askpass.Prefer || o.Require == askpass.Force {
		ways[0], ways[1] = ways[1], ways[0]
	}
	return ways
}

// chosen returns the ways in o.Ways, in that order.
func (o Options) chosen() (ways []way.Way) {
	all := o.all()
	if o.Ways == nil {
		return all
	}
	for _, name := range o.Ways {
		if i := slices.IndexFunc(all, func(w way.Way) bool { return w.Name() == name }); i >= 0 {
			ways = append(ways, all[i])
		}
	}
	return ways
}

// ParseWays reads the names of ways, separated by commas, in the order in which
// they are to be tried. "none" is an empty list. "auto" is nil, which leaves the
// choice to the environment.
func ParseWays(list string) ([]string, error) {
	switch list {
	case "auto":
		return nil, nil
	case "none":
		return []string{}, nil
	}
	var all []string
	for _, w := range (Options{}).all() {
		all = append(all, w.Name())
	}
	names := strings.Split(list, ",")
	for i, name := range names {
		switch {
		case !slices.Contains(all, name):
			return nil, fmt.Errorf("%q is not a way to ask: they are %s; or auto, or none", name, strings.Join(all, ", "))
		case slices.Contains(names[:i], name):
			return nil, fmt.Errorf("%s is named twice", name)
		}
	}
	return names, nil
}

// ask asks in one way after the other, until one was usable. If none was, the
// error names each way with its cause, and what helps.
func (p *Prompter) ask(ctx context.Context, q way.Question) (way.Answer, error) {
	if len(p.ways) == 0 {
		return way.Answer{}, fmt.Errorf("%w: serve --prompt none asks nobody", ask.ErrNoPrompt)
	}
	failed := ask.ErrNoPrompt
	for _, w := range p.ways {
		if ctx.Err() != nil {
			break
		}
		answer, err := w.Ask(ctx, q)
		unusable, ok := errors.AsType[*way.UnusableError](err)
		if !ok {
			return answer, err
		}
		p.log.Debug("skipped a way to ask", "way", w.Name(), "cause", unusable)
		failed = fmt.Errorf("%w; %s: %w", failed, w.Name(), unusable)
	}
	if ctx.Err() != nil {
		return way.Answer{}, context.Cause(ctx)
	}
	var hints []string
	if p.has("pinentry") || p.has("askpass") {
		hints = append(hints, "DISPLAY or WAYLAND_DISPLAY for the agent, with a pinentry or SSH_ASKPASS")
	}
	if p.has("terminal") {
		hints = append(hints, "a terminal in which the client runs and nothing else reads")
	}
	if len(hints) > 0 {
		failed = fmt.Errorf("%w; what helps: %s", failed, strings.Join(hints, ", or "))
	}
	return way.Answer{}, failed
}

func (p *Prompter) has(name string) bool {
	return slices.ContainsFunc(p.ways, func(w way.Way) bool { return w.Name() == name })
}
