package agent

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"
)

// maxRecent is how many refusals are kept. Their texts are cut, so that the
// answer to RefusalsRequest fits a message.
const (
	maxRecent       = 64
	maxRecentText   = 512  // bytes
	maxRecentDetail = 1024 // bytes; what every way to ask says for itself fits
)

// recent are the last refusals, for who wants to know why.
type recent struct {
	mu  sync.Mutex
	all []Refusal
}

func (rs *recent) add(r Refusal) {
	for _, text := range []*string{&r.Request, &r.Key, &r.Fingerprint, &r.Cause} {
		*text = shortened(*text, maxRecentText)
	}
	r.Detail = shortened(r.Detail, maxRecentDetail)
	for i, name := range r.Chain {
		r.Chain[i] = shortened(name, maxRecentText)
	}
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if len(rs.all) == maxRecent {
		rs.all = slices.Delete(rs.all, 0, 1)
	}
	rs.all = append(rs.all, r)
}

func (rs *recent) list() []Refusal {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	return slices.Clone(rs.all)
}

// shortened is text that fits a string of the protocol, of up to limit bytes.
func shortened(s string, limit int) string {
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "") + "…"
	}
	return s
}

// refuse logs why a request gets a failure, and keeps it; id may be nil. That a
// client does not wait any longer is nothing that somebody should look into.
func (a *Agent) refuse(by asker, what string, id *identity, r *refusal, more ...any) {
	level := slog.LevelWarn
	if r.cause == CauseHungUp {
		level = slog.LevelInfo
	}
	kept := Refusal{Time: time.Now(), Request: what, Cause: string(r.cause), PID: by.PID, Chain: by.Chain()}
	if len(kept.Chain) == 0 && by.program != "" { // it has gone since
		kept.Chain = []string{by.program}
	}
	if r.err != nil && r.err != context.Canceled { // of which the cause says more
		kept.Detail = r.err.Error()
	}
	attrs := []any{slog.String("request", what)}
	if id != nil {
		kept.Key, kept.Fingerprint = id.name(), id.fingerprint()
		attrs = append(attrs, "key", kept.Key, "fingerprint", kept.Fingerprint)
	}
	for _, m := range more {
		if attr, ok := m.(slog.Attr); ok && attr.Key == "fingerprint" {
			kept.Fingerprint = attr.Value.String()
		}
	}
	a.recent.add(kept)
	attrs = append(append(attrs, r.attrs()...), slog.Any("peer", by))
	a.log.Log(context.Background(), level, "refused", append(attrs, more...)...)
}
