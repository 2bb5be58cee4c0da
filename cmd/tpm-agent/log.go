package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"log/syslog"
	"os"
	"sync"

	"github.com/tpm-agent/tpm-agent/internal/keydir"
)

// newLogger writes lines of text to stderr, or to syslog for an agent that has
// left the caller's terminal. The journal and syslog put the time before each
// line themselves.
func newLogger(sys system, o serveOptions) (*slog.Logger, error) {
	level, err := o.level()
	if err != nil {
		return nil, err
	}
	options := &slog.HandlerOptions{Level: level}
	if o.forked {
		out, err := syslog.New(syslog.LOG_AUTH|syslog.LOG_INFO, "tpm-agent")
		if err != nil {
			return slog.New(slog.DiscardHandler), nil // no syslog here: --help says so
		}
		return slog.New(newPatientLog(newSyslogHandler(out, options))), nil
	}
	if sys.getenv("JOURNAL_STREAM") != "" {
		options.ReplaceAttr = withoutTime
	}
	return slog.New(newPatientLog(slog.NewTextHandler(sys.stderr, options))), nil
}

// level is the one that was asked for.
func (o serveOptions) level() (slog.Level, error) {
	levels := map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}
	level, ok := levels[o.logLevel]
	switch {
	case o.verbose:
		return slog.LevelDebug, nil
	case ok:
		return level, nil
	case o.logLevel == "" && len(o.command) > 0:
		return slog.LevelWarn, nil // its terminal is the command's
	case o.logLevel == "":
		return slog.LevelInfo, nil
	}
	return 0, usage("--log-level %s: must be debug, info, warn or error", plain(o.logLevel))
}

func withoutTime(groups []string, a slog.Attr) slog.Attr {
	if a.Key == slog.TimeKey && len(groups) == 0 {
		return slog.Attr{}
	}
	return a
}

// syslogWriter is the part of *syslog.Writer that a log needs.
type syslogWriter interface {
	Debug(string) error
	Info(string) error
	Warning(string) error
	Err(string) error
}

// syslogHandler gives each line to syslog, with the severity of its level.
type syslogHandler struct {
	text  slog.Handler // writes to line
	line  *bytes.Buffer
	mutex *sync.Mutex // guards line
	out   syslogWriter
}

func newSyslogHandler(out syslogWriter, options *slog.HandlerOptions) slog.Handler {
	options.ReplaceAttr = withoutTime
	line := new(bytes.Buffer)
	return &syslogHandler{slog.NewTextHandler(line, options), line, new(sync.Mutex), out}
}

func (h *syslogHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.text.Enabled(ctx, level)
}

func (h *syslogHandler) Handle(ctx context.Context, r slog.Record) error {
	h.mutex.Lock()
	h.line.Reset()
	err := h.text.Handle(ctx, r)
	line := h.line.String()
	h.mutex.Unlock()
	switch {
	case err != nil:
		return err
	case r.Level < slog.LevelInfo:
		return h.out.Debug(line)
	case r.Level < slog.LevelWarn:
		return h.out.Info(line)
	case r.Level < slog.LevelError:
		return h.out.Warning(line)
	}
	return h.out.Err(line)
}

func (h *syslogHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &syslogHandler{h.text.WithAttrs(attrs), h.line, h.mutex, h.out}
}

func (h *syslogHandler) WithGroup(name string) slog.Handler {
	return &syslogHandler{h.text.WithGroup(name), h.line, h.mutex, h.out}
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
