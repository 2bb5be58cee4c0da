package main

import (
	"log/slog"
	"time"

	"github.com/tpm-agent/tpm-agent/internal/prompt"
)

// asking is what the options say about prompts.
type asking struct {
	ways    []string // nil: as the environment has it
	timeout time.Duration
}

// read reads --prompt and --prompt-timeout.
func (a *asking) read(ways, timeout string) (err error) {
	if a.ways, err = prompt.ParseWays(ways); err != nil {
		return usage("--prompt: %w", err)
	}
	if a.timeout, err = parseLifetime(timeout); err != nil {
		return usage("--prompt-timeout: %w", err)
	}
	if a.timeout == 0 {
		return usage("--prompt-timeout %s: a dialog needs some time", plain(timeout))
	}
	return nil
}

// options adds what the environment says. A way that was asked for by name and
// is not installed is no reason not to start, for it may be installed later.
func (a asking) options(sys system, log *slog.Logger) (prompt.Options, error) {
	o, err := prompt.FromEnviron(sys.without())
	if err != nil {
		return o, &usageError{err}
	}
	o.Ways, o.Timeout, o.Log = a.ways, a.timeout, log
	for _, missing := range o.Missing() {
		log.Warn("a way of --prompt cannot be used", "cause", missing)
	}
	return o, nil
}
