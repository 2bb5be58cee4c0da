package daemon

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tpm-agent/tpm-agent/internal/prompt"
	"github.com/tpm-agent/tpm-agent/internal/prompt/askpass"
	"github.com/tpm-agent/tpm-agent/internal/prompt/pinentry"
	"github.com/tpm-agent/tpm-agent/internal/prompt/systemd"
	"github.com/tpm-agent/tpm-agent/internal/prompt/tty"
	"github.com/tpm-agent/tpm-agent/internal/term"
)

// prompts says how to ask the user: --prompt, --prompt-timeout, and the
// environment.
type prompts struct {
	prompt.Settings
	names    []string        // of the ways to try, in order; nil: all
	askpass  string          // the program for askpass; "": none
	require  askpass.Require // when to use it
	terminal string          // the agent's own; "": none
}

// readPrompts reads how to ask. A way that was asked for by name need not be
// installed: it may be installed later.
func (d *daemon) readPrompts() (err error) {
	p := prompts{terminal: "/dev/tty"}
	p.Environ, p.Grace = d.sys.Without(), 2*time.Second
	if p.askpass, p.require, err = askpass.FromEnviron(p.Environ); err != nil {
		return term.Usage("%w", err)
	}
	if p.names, err = parseWays(d.Prompt); err != nil {
		return term.Usage("--prompt: %w", err)
	}
	p.Timeout, err = term.ParseLifetime(d.PromptTimeout)
	switch {
	case err != nil:
		return term.Usage("--prompt-timeout: %w", err)
	case p.Timeout == 0:
		return term.Usage("--prompt-timeout %s: a dialog needs some time", term.Plain(d.PromptTimeout))
	}
	for _, missing := range p.missing() {
		d.log.Warn("a way of --prompt cannot be used", "cause", missing)
	}
	d.prompts = p
	return nil
}

// parseWays reads the names of ways, separated by commas, in the order in which
// they are to be tried. "none" is an empty list. "auto" is nil, which leaves the
// choice to the environment.
func parseWays(list string) ([]string, error) {
	switch list {
	case "auto":
		return nil, nil
	case "none":
		return []string{}, nil
	}
	var all []string
	for _, w := range (prompts{}).ways() {
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

// ways returns the ways to ask, in the order in which they are tried.
func (p prompts) ways() []prompt.Way {
	terminals := tty.New(p.Settings, p.terminal)
	all := []prompt.Way{
		pinentry.New(p.Settings, terminals),
		askpass.New(p.Settings, p.askpass, p.require),
		terminals,
		systemd.New(p.Settings),
	}
	if p.require == askpass.Prefer || p.require == askpass.Force {
		all[0], all[1] = all[1], all[0]
	}
	if p.names == nil {
		return all
	}
	var ways []prompt.Way
	for _, name := range p.names {
		if i := slices.IndexFunc(all, func(w prompt.Way) bool { return w.Name() == name }); i >= 0 {
			ways = append(ways, all[i])
		}
	}
	return ways
}

// missing returns the ways that were asked for by name but are not installed, with
// what is missing.
func (p prompts) missing() (missing []string) {
	if p.names == nil {
		return nil
	}
	for _, w := range p.ways() {
		if err := w.Installed(); err != nil {
			missing = append(missing, fmt.Sprintf("%s: %v", w.Name(), err))
		}
	}
	return missing
}
