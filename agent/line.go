package agent

import (
	"context"
	"sync"
)

// lines are places to wait in, one for each name. A line is there while
// somebody stands in it. The zero value has no lines.
type lines struct {
	mu sync.Mutex
	m  map[string]*line
}

// line lets one in at a time, in order of arrival: who waits to send on a
// channel is served first come, first served.
type line struct {
	inside chan struct{}
	people int // waiting or inside; guarded by lines.mu
}

// enter waits for its turn, which lasts until leave is called, or for the end
// of ctx, which leaves the line.
func (l *lines) enter(ctx context.Context, name string) (leave func(), err error) {
	line := l.join(name)
	select {
	case line.inside <- struct{}{}:
		return func() { <-line.inside; l.part(name, line) }, nil
	case <-ctx.Done():
		l.part(name, line)
		return nil, ctx.Err()
	}
}

func (l *lines) join(name string) *line {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.m == nil {
		l.m = make(map[string]*line)
	}
	if l.m[name] == nil {
		l.m[name] = &line{inside: make(chan struct{}, 1)}
	}
	l.m[name].people++
	return l.m[name]
}

func (l *lines) part(name string, line *line) {
	l.mu.Lock()
	defer l.mu.Unlock()
	line.people--
	if line.people == 0 {
		delete(l.m, name)
	}
}
