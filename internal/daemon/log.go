package daemon

import (
	"bytes"
	"io"
	"log/slog"
	"log/syslog"
	"sync/atomic"
	"time"

	"github.com/tpm-agent/tpm-agent/internal/term"
)

// newLogger writes lines of text to stderr, or to syslog for an agent that has
// left the caller's terminal. The journal and syslog add the time themselves.
func newLogger(sys *term.System, o *Options) (*slog.Logger, error) {
	level, err := o.level()
	if err != nil {
		return nil, err
	}
	options := &slog.HandlerOptions{Level: level}
	out := io.Writer(sys.Stderr)
	switch {
	case o.Forked:
		w, err := syslog.New(syslog.LOG_AUTH|syslog.LOG_INFO, "tpm-agent")
		if err != nil {
			return slog.New(slog.DiscardHandler), nil // no syslog here: --help says so
		}
		out, options.ReplaceAttr = syslogLines{w}, withoutTime
	case sys.Getenv("JOURNAL_STREAM") != "":
		options.ReplaceAttr = withoutTime
	}
	return slog.New(slog.NewTextHandler(newPatientWriter(out, options), options)), nil
}

// level returns the one that was asked for.
func (o *Options) level() (slog.Level, error) {
	if o.LogLevel == nil {
		switch {
		case o.Verbose:
			return slog.LevelDebug, nil
		case len(o.Command) > 0:
			return slog.LevelWarn, nil // its terminal is the command's
		}
		return slog.LevelInfo, nil
	}
	levels := map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}
	level, ok := levels[*o.LogLevel]
	if !ok {
		return 0, term.Usage("--log-level %s: must be debug, info, warn or error", term.Plain(*o.LogLevel))
	}
	return level, nil
}

func withoutTime(groups []string, a slog.Attr) slog.Attr {
	if a.Key == slog.TimeKey && len(groups) == 0 {
		return slog.Attr{}
	}
	return a
}

// syslogLines writes each line with the severity of its level.
type syslogLines struct{ *syslog.Writer }

func (w syslogLines) Write(line []byte) (int, error) {
	write := w.Info
	for prefix, f := range map[string]func(string) error{"level=DEBUG": w.Debug, "level=WARN": w.Warning, "level=ERROR": w.Err} {
		if bytes.HasPrefix(line, []byte(prefix)) {
			write = f
		}
	}
	return len(line), write(string(line))
}

const (
	// logPatience is how long the agent waits until a line is written: a
	// terminal that was stopped with Ctrl-S, a full pipe or a syslog that hangs
	// must not delay clients, nor the agent's end.
	logPatience = 250 * time.Millisecond

	// maxLogWaiting is how many lines wait to be written.
	maxLogWaiting = 1000
)

// patientWriter keeps lines while the one before them is not written, and drops
// those for which it has no room. The handler makes no two calls of Write at once.
type patientWriter struct {
	lines chan logLine
	stuck atomic.Bool // patience has ended, and there are lines to write
	lost  int         // behind the last line
}

type logLine struct {
	text    []byte
	lost    int           // lines before it
	written chan struct{} // closed when it is
}

func newPatientWriter(out io.Writer, options *slog.HandlerOptions) *patientWriter {
	w := &patientWriter{lines: make(chan logLine, maxLogWaiting-1)} // and one is being written
	go w.run(out, options)
	return w
}

// Write returns when the line is written, or patience has ended with this line or
// one before. It always succeeds: errors could only be logged.
func (w *patientWriter) Write(text []byte) (int, error) {
	line := logLine{bytes.Clone(text), w.lost, make(chan struct{})}
	select {
	case w.lines <- line:
		w.lost = 0
	default:
		w.lost++
		return len(text), nil
	}
	if !w.stuck.Load() {
		select {
		case <-line.written:
		case <-time.After(logPatience):
			w.stuck.Store(true)
		}
	}
	return len(text), nil
}

// run writes lines for as long as the program runs.
func (w *patientWriter) run(out io.Writer, options *slog.HandlerOptions) {
	for line := range w.lines {
		if line.lost > 0 {
			slog.New(slog.NewTextHandler(out, options)).Warn("the log was not read, and lines are lost", "lines", line.lost)
		}
		_, _ = out.Write(line.text)
		if len(w.lines) == 0 {
			w.stuck.Store(false)
		}
		close(line.written)
	}
}
