package main

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// logPatience is how long the agent waits for whoever takes its log: a terminal
// that was stopped with Ctrl-S, a pipe that nobody empties or a syslog that hangs
// must hold up neither clients nor the agent's end.
const logPatience = 250 * time.Millisecond

// patientLog is a slog.Handler that leaves lines out while the one before is not
// taken.
type patientLog struct {
	slog.Handler
	line *logLine
}

// logLine is the line in the works, of a handler and of those made from it.
type logLine struct {
	mu      sync.Mutex
	written chan struct{} // closed when it is
	lost    int           // lines since the last that was taken
}

func newPatientLog(h slog.Handler) *patientLog {
	written := make(chan struct{})
	close(written)
	return &patientLog{h, &logLine{written: written}}
}

// Handle returns when the line is written, or patience has ended.
func (l *patientLog) Handle(ctx context.Context, r slog.Record) error {
	l.line.mu.Lock()
	defer l.line.mu.Unlock()
	select {
	case <-l.line.written:
	default:
		l.line.lost++
		return nil
	}
	lost, written := l.line.lost, make(chan struct{})
	l.line.lost, l.line.written = 0, written
	r = r.Clone()
	go func() {
		defer close(written)
		l.write(ctx, lost, r)
	}()
	timer := time.NewTimer(logPatience)
	defer timer.Stop()
	select {
	case <-written:
	case <-timer.C:
	}
	return nil
}

// write has no way to report an error: this is where errors go.
func (l *patientLog) write(ctx context.Context, lost int, r slog.Record) {
	if lost > 0 {
		gap := slog.NewRecord(r.Time, slog.LevelWarn, "nobody took the log, and lines are lost", 0)
		gap.AddAttrs(slog.Int("lines", lost))
		_ = l.Handler.Handle(ctx, gap)
	}
	_ = l.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (l *patientLog) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &patientLog{l.Handler.WithAttrs(attrs), l.line}
}

// WithGroup implements slog.Handler.
func (l *patientLog) WithGroup(name string) slog.Handler {
	return &patientLog{l.Handler.WithGroup(name), l.line}
}
