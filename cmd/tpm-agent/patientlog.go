package main

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

const (
	// logPatience is how long the agent waits for whoever takes its log: a
	// terminal that was stopped with Ctrl-S, a pipe that nobody empties or a
	// syslog that hangs must hold up neither clients nor the agent's end.
	logPatience = 250 * time.Millisecond

	// maxLogWaiting is how many lines wait to be taken.
	maxLogWaiting = 1000
)

// patientLog is a slog.Handler that keeps lines while the one before is not
// taken, and leaves out those for which it has no room.
type patientLog struct {
	slog.Handler
	lines *logLines
}

// logLines are the lines of a handler and of those made from it.
type logLines struct {
	turn sync.Mutex // of who may wait for its line to be written

	mu      sync.Mutex
	waiting []logLine // in order; the first is being written
	lost    int       // behind the last of them
}

type logLine struct {
	write   func()
	written chan struct{} // closed when it is
}

func newPatientLog(h slog.Handler) *patientLog { return &patientLog{h, new(logLines)} }

// Handle returns when the line is written, or patience has ended with this line
// or one before.
func (l *patientLog) Handle(ctx context.Context, r slog.Record) error {
	l.lines.turn.Lock()
	defer l.lines.turn.Unlock()
	r = r.Clone()
	// There is no way to report an error: this is where errors go.
	written, behind := l.lines.put(func(lost int) {
		if lost > 0 {
			gap := slog.NewRecord(r.Time, slog.LevelWarn, "nobody took the log, and lines are lost", 0)
			gap.AddAttrs(slog.Int("lines", lost))
			_ = l.Handler.Handle(ctx, gap)
		}
		_ = l.Handler.Handle(ctx, r)
	})
	if behind {
		return nil
	}
	timer := time.NewTimer(logPatience)
	defer timer.Stop()
	select {
	case <-written:
	case <-timer.C:
	}
	return nil
}

// put has a line written, which is told how many were lost before it. behind
// says that others are to be written first, or that there are too many of them
// already.
func (l *logLines) put(write func(lost int)) (written <-chan struct{}, behind bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(l.waiting)
	if n == maxLogWaiting {
		l.lost++
		return nil, true
	}
	lost := l.lost
	line := logLine{func() { write(lost) }, make(chan struct{})}
	l.lost, l.waiting = 0, append(l.waiting, line)
	if n == 0 {
		go l.run(line)
	}
	return line.written, n > 0
}

// run writes a line and those behind it.
func (l *logLines) run(line logLine) {
	for more := true; more; {
		line.write()
		written := line.written
		l.mu.Lock()
		l.waiting = l.waiting[1:]
		if more = len(l.waiting) > 0; more {
			line = l.waiting[0]
		}
		l.mu.Unlock()
		close(written)
	}
}

// WithAttrs implements slog.Handler.
func (l *patientLog) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &patientLog{l.Handler.WithAttrs(attrs), l.lines}
}

// WithGroup implements slog.Handler.
func (l *patientLog) WithGroup(name string) slog.Handler {
	return &patientLog{l.Handler.WithGroup(name), l.lines}
}
